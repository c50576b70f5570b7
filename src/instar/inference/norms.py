"""Norms that an energy transformer can be built with."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from instar.errors import ShapeError

Norm = Literal["rms", "layer", "none", "dyt"]


class DynamicTanh(nn.Module):
    """y = g tanh(a x) + b with one learnt a, 0.5 at the start (Zhu et al. 2025, arXiv 2503.10622)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.5))
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * torch.tanh(self.slope * x) + self.bias


def make_norm(kind: Norm, width: int) -> nn.Module:
    """A norm of D channels. Raises ShapeError for one that nobody has."""
    if kind == "rms":
        return nn.RMSNorm(width, eps=1e-5)
    if kind == "layer":
        return nn.LayerNorm(width, eps=1e-5)
    if kind == "dyt":
        return DynamicTanh(width)
    if kind == "none":
        return nn.Identity()
    raise ShapeError(f"norm must be one of {', '.join(get_args(Norm))}; received {kind!r}.")
