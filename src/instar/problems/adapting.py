"""What the problems that adapt a model share: training of what is not frozen, and what an adapter costs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from instar.adapters import flops
from instar.adapters.attached import adapted, bare, parameters, state_of
from instar.adapters.layer import Adapted
from instar.adapters.merging import merge_and_unload
from instar.anatomy import Linear
from instar.anatomy.linear import is_linear
from instar.bench.fit import fit
from instar.interfaces import Monitor

TOKENS = (16, 64, 512, 4096)
"""Rows at which FLOPs of an adapted layer are counted."""


class Subject:
    """A model with an adapter in it. No module itself: torch's tracker of memory cannot follow frozen parameters."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model


def train(
    model: nn.Module,
    batch: Callable[[int], Any],
    loss: Callable[[nn.Module, Any], Tensor],
    *,
    steps: int,
    seed: int,
    heads: Sequence[str] = (),
    head_lr: float = 0.0,
    monitor: Monitor | None = None,
) -> None:
    """Train the active adapter at the rate that its method says, and the copies of heads at theirs, without weight decay."""
    state = state_of(model)
    assert state.active is not None
    adapter = state.named[state.active].adapter
    over = [p for head in heads for p in adapted(model)[head].adapters[state.active].parameters()]
    ids = {id(p) for p in over}
    rest = [p for p in parameters(model) if id(p) not in ids]
    groups = [{"params": rest, "lr": adapter.lr}, {"params": over, "lr": head_lr}]
    fit(
        model,
        batch,
        loss,
        steps=steps,
        lr=adapter.lr,
        weight_decay=0.0,
        betas=(0.9, 0.999),
        groups=[group for group in groups if group["params"]],
        seed=seed,
        monitor=monitor,
    )


def costs(model: nn.Module, head: str | None = None) -> dict[str, float]:
    """Numbers that are trained, FLOPs and bytes of an adapted layer beside those of the base, and what merging leaves behind.

    The layer is the first linear one that is adapted; a step goes from its input to the gradient of its input and of what it
    trains.
    """
    inside = set() if head is None else {id(p) for p in adapted(model)[head].parameters()}
    found = {"parameters": float(sum(p.numel() for p in model.parameters()))}
    found["trained"] = float(sum(p.numel() for p in parameters(model) if id(p) not in inside))
    layer = next((one for path, one in adapted(model).items() if path != head and is_linear(one.base_layer)), None)
    for T in TOKENS:
        extra = (0, 0, 0) if layer is None else _beside(layer, T)
        for name, value in zip(("forward_flops", "step_flops", "kept_bytes"), extra, strict=True):
            found[f"{name}@{T}"] = float(value)
    found["left_by_merging"] = float(left_by_merging(model))
    return found


def left_by_merging(model: nn.Module) -> int:
    """Modules and tensors in which the merged model differs from its base in kind, name or shape. The model stays as it is."""
    with bare(model):
        plain = _kinds(model)
    with merge_and_unload(model):
        return len(_kinds(model) ^ plain)


def _kinds(model: nn.Module) -> set[tuple[str, Any]]:
    modules: set[tuple[str, Any]] = {(path, type(module)) for path, module in model.named_modules()}
    return modules | {(path, (tuple(p.shape), p.dtype)) for path, p in model.named_parameters()}


def _beside(layer: Adapted, T: int) -> tuple[int, ...]:
    x = torch.randn(T, Linear("", layer.base_layer).inputs, generator=torch.Generator().manual_seed(0))
    one = copy.deepcopy(layer)
    measures = (flops.forward, flops.step, flops.kept_bytes)
    with_it = [measure(one, x) for measure in measures]
    one.active = None
    one.adapters.requires_grad_(False)
    return tuple(more - measure(one, x) for more, measure in zip(with_it, measures, strict=True))
