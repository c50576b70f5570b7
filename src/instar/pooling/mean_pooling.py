"""The mean of a bag."""

from __future__ import annotations

from torch import Tensor

from instar.interfaces import Pooling
from instar.pooling import bag


class MeanPooling(Pooling):
    """z = (1 / N) Σ_n h_n; zeros for an empty bag. E = D. O(N D) time, no parameters. Raises ShapeError."""

    def __init__(self, width: int) -> None:
        super().__init__()
        bag.positive(width=width)
        self.width = self.out_width = width

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """[B, N, D] -> [B, D]"""
        x, known = bag.real(x, mask, self.width)
        return x.sum(1) / known.sum(1, keepdim=True).clamp(min=1)

    def reference(self, instances: Tensor) -> Tensor:
        """As it is written."""
        return instances.mean(0) if len(instances) else instances.sum(0)
