"""Parts switched off: by hooks, which cost nothing to change and save no time, and by zeros in the weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from instar.compression.pruning import hard_attention
from instar.compression.pruning.layout import Layout, layout
from instar.compression.pruning.removed import Removed
from instar.errors import TransformError


class Masks:
    """Hooks on the two layers of each block that put out attention and FFN; what they let through can be set at any time.

    Inputs that belong to a head or a group that is out are multiplied by 0; the output of a block that is out is replaced by 0,
    so that the bias goes with it, which a block of which every head is out keeps.
    """

    def __init__(self, model: nn.Module, parts: Layout) -> None:
        self.parts = parts
        self._masks: dict[tuple[str, int], Tensor] = {}
        self._dropped: set[tuple[str, int]] = set()
        self._cores = [model.get_submodule(parts.core(layer)) for layer in range(parts.depth)]
        self._handles = []
        for layer, block in enumerate(parts.parts.blocks):
            for name, linear in (("attention", block.attention_out), ("ffn", block.ffn_out)):
                self._handles.append(linear.module.register_forward_pre_hook(self._before((name, layer))))
                self._handles.append(linear.module.register_forward_hook(self._after((name, layer))))

    def set(self, removed: Removed) -> None:
        """Let through all but these."""
        parts = self.parts
        self._dropped = {(kind, layer) for kind in ("attention", "ffn") for layer in removed.layers(kind)}
        self._masks = {}
        for layer, block in enumerate(parts.parts.blocks):
            for name, out, linear in (
                ("attention", parts.columns(layer, removed.inside("heads", layer)), block.attention_out),
                ("ffn", parts.neurons(layer, removed.inside("groups", layer)), block.ffn_out),
            ):
                if bool(out.any()):
                    self._masks[name, layer] = (~out).to(linear.parameter)
        hard = removed.layers("hard")
        for layer, core in enumerate(self._cores):
            hard_attention.choose(core, removed.top_k if layer in hard else None, removed.renormalise)

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        for core in self._cores:
            hard_attention.choose(core, None)

    def _before(self, key: tuple[str, int]) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            mask = self._masks.get(key)
            return None if mask is None else (inputs[0] * mask, *inputs[1:])

        return hook

    def _after(self, key: tuple[str, int]) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            return torch.zeros_like(output) if key in self._dropped else None

        return hook


@contextlib.contextmanager
def masking(model: nn.Module, parts: Layout, *, hard: bool) -> Iterator[Masks]:
    """Masks that can be set, for the block. hard: whether layers may be told to attend hard, which changes how all attend."""
    before = getattr(getattr(model, "config", None), "_attn_implementation", None)
    masks = Masks(model, parts)
    try:
        if hard:
            hard_attention.install(model)
        yield masks
    finally:
        masks.close()
        if hard and model.config._attn_implementation != before:  # type: ignore[union-attr]
            model.set_attn_implementation(before)  # type: ignore[operator]


@contextlib.contextmanager
def masked(model: nn.Module, removed: Removed) -> Iterator[None]:
    """Inside the block the model computes without these parts; no weight is changed, and no time is saved.

    Raises TransformError for parts that it does not have, ModelError.
    """
    parts = layout(model, removed.group_size)
    parts.check(removed)
    with masking(model, parts, hard=bool(removed.layers("hard"))) as masks:
        masks.set(removed)
        yield


def zeros(parts: Layout, removed: Removed) -> dict[str, Tensor]:
    """Name -> new value, of the weights and biases that must be 0, in part, so that the model computes without these parts.

    Of a head, the columns of the output of attention; of a group, those of the output of the FFN; of a block, the whole output
    and its bias. Raises TransformError for hard attention, which no weights amount to.
    """
    parts.check(removed)
    if removed.layers("hard"):
        raise TransformError(
            "Hard attention is no matter of weights, so that no plain model computes it: search with top_k=0, or cut."
        )
    found: dict[str, Tensor] = {}
    for layer, block in enumerate(parts.parts.blocks):
        for linear, out, dropped in (
            (block.attention_out, parts.columns(layer, removed.inside("heads", layer)), layer in removed.layers("attention")),
            (block.ffn_out, parts.neurons(layer, removed.inside("groups", layer)), layer in removed.layers("ffn")),
        ):
            if dropped and linear.bias is not None:
                found[f"{linear.name}.bias"] = torch.zeros_like(linear.bias.detach())
            if dropped or bool(out.any()):
                gone = (torch.ones_like(out) if dropped else out).to(linear.parameter.device)
                shape = (-1, 1) if linear.transposed else (1, -1)
                found[linear.parameter_name] = linear.parameter.detach().masked_fill(gone.view(shape), 0)
    return found


def zeroed(model: nn.Module, removed: Removed) -> dict[str, Tensor]:
    """The model's state dict with zeros where parts are out: the same function in the old shapes, which plain code loads.

    The model is not changed; no time and no bytes are saved. Raises what `zeros` raises.
    """
    found = zeros(layout(model, removed.group_size), removed)
    return {**model.state_dict(), **found}
