"""A small network, its batches and its training, the same at every call: what the checks of an optimiser use."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.bench.seeds import initialising
from instar.checks.subject import Subject

_LAYERS = (6, 9, 7, 4)


def build(subject: Subject, seed: int = 0, hidden: Sequence[int] = _LAYERS[1:-1]) -> nn.Sequential:
    """Linear layers with tanh between them."""
    with initialising(subject.seed + seed):
        layers: list[nn.Module] = []
        for i, o in itertools.pairwise((_LAYERS[0], *hidden, _LAYERS[-1])):
            layers += [nn.Linear(i, o), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def made(subject: Subject, seed: int = 0) -> tuple[nn.Module, Any]:
    """The network and the optimiser around it."""
    model = build(subject, seed)
    return model, subject.cls(model, **subject.arguments)


def batch(index: int) -> tuple[Tensor, Tensor]:
    """Inputs [16, 6] and what they should become [16, 4]."""
    generator = torch.Generator().manual_seed(index)
    return torch.randn(16, _LAYERS[0], generator=generator), torch.randn(16, _LAYERS[-1], generator=generator)


def loss(model: nn.Module, index: int) -> Tensor:
    """Of one batch."""
    x, y = batch(index)
    return F.mse_loss(model(x), y)


def train(model: nn.Module, optimiser: Any, steps: int, first: int | None = None) -> list[float]:
    """Steps on batches of their own from `first` on, or all on one."""
    losses = []
    for step in range(steps):
        found = loss(model, 0 if first is None else first + step)
        found.backward()
        optimiser.step()
        losses.append(float(found.detach()))
        optimiser.observe(losses[-1])
        optimiser.zero_grad()
    return losses
