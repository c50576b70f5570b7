"""The largest value of each feature in a bag."""

from __future__ import annotations

import torch
from torch import Tensor

from instar.interfaces import Pooling
from instar.pooling import bag


class MaxPooling(Pooling):
    """z_d = max_n h_nd; zeros for an empty bag. E = D. O(N D) time, no parameters. Raises ShapeError."""

    def __init__(self, width: int) -> None:
        super().__init__()
        bag.positive(width=width)
        self.width = self.out_width = width

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """[B, N, D] -> [B, D]"""
        x, known = bag.real(x, mask, self.width)
        if not x.shape[1]:
            return x.sum(1)
        found = x.masked_fill(~known.unsqueeze(-1), -torch.inf).amax(1)
        return found.masked_fill(~known.any(1, keepdim=True), 0.0)

    def reference(self, instances: Tensor) -> Tensor:
        """As it is written."""
        return instances.amax(0) if len(instances) else instances.sum(0)
