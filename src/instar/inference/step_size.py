"""The step size of the inner loop: learnt or fixed, the same for all or drawn by sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from instar.errors import ShapeError

LEAST = 1e-4
_FASTER = 3.0


class StepSize(nn.Module):
    """a, clamped below at 1e-4; in training drawn by sample from [a / r, r a]."""

    def __init__(self, alpha: float, *, learn: bool, spread: float = 1.0) -> None:
        super().__init__()
        if not (alpha > 0 and math.isfinite(alpha)) or not spread >= 1:
            raise ShapeError(
                f"A step size must be positive and finite, and its random factor at least 1; received {alpha}, {spread}."
            )
        self.start, self.spread = alpha, spread
        self.alpha = nn.Parameter(torch.tensor(float(alpha)), requires_grad=learn)

    @property
    def value(self) -> Tensor:
        """a, with its graph."""
        return self.alpha.clamp_min(LEAST)

    def forward(self, shape: Sequence[int], *, random: bool) -> Tensor:
        """Sizes of that shape, or [1, …] where all are the same."""
        if not random or self.spread == 1:
            return self.value.expand([1] * len(shape))
        low, high = 1 / self.spread, self.spread
        return self.value * (low + (high - low) * torch.rand(list(shape), dtype=self.alpha.dtype, device=self.alpha.device))

    def groups(self, groups: list[dict[str, Any]], lr: float) -> list[dict[str, Any]]:
        """Parameter groups of the model in which a learnt a has a rate of its own, 3 a lr, and no decay."""
        kept = [{**group, "params": [p for p in group["params"] if p is not self.alpha]} for group in groups]
        if self.alpha.requires_grad:
            kept.append({"params": [self.alpha], "lr": _FASTER * self.start * lr, "weight_decay": 0.0})
        return [group for group in kept if group["params"]]
