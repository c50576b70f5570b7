"""What predictors of vectors share: their error, and an example."""

from __future__ import annotations

import torch
from torch import Tensor


def squared_error(y: Tensor, target: Tensor) -> Tensor:
    """Mean over positions that are counted, summed over channels."""
    real = ~target.isnan()
    return (y - target.nan_to_num()).square().masked_fill(~real, 0.0).sum() / real.any(-1).sum().clamp_min(1)


def random_means(like: Tensor, outputs: int, batch: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """An example: random vectors x [B, 8, F], F the inputs of the matrix `like`, and the mean of each as its target [B, 8, O]."""
    x = torch.randn(batch, 8, like.shape[1], generator=generator, dtype=like.dtype, device=like.device)
    return x, x.mean(-1, keepdim=True).expand(-1, -1, outputs).contiguous()


def random_walks(like: Tensor, batch: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """An example: slow random walks x [B, 8, F], F the inputs of the matrix `like`, and what follows each state."""
    steps = torch.randn(batch, 9, like.shape[1], generator=generator, dtype=like.dtype, device=like.device)
    walk = 0.5 * steps.cumsum(1)
    return walk[:, :-1], walk[:, 1:]
