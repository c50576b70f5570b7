"""Exact attention whose gradient is made a block of queries at a time."""

from __future__ import annotations

from torch import Tensor

from instar.adapters.limits import attention
from instar.adapters.limits.gradients import BLOCK
from instar.errors import ShapeError
from instar.interfaces import AttentionHead


class InBlocks(AttentionHead):
    """Lemma 3.2 of Hu et al. by blocks of rows: the diagonal and rank-one structure needs no matrix of L × M.

    Args: block: rows at a time.

    O(L M (D + E)) time, O(M · block) memory. Raises ShapeError. Source: arXiv 2406.03136.
    """

    def __init__(self, *, block: int = BLOCK) -> None:
        if block < 1:
            raise ShapeError(f"A block has at least one row; received {block}.")
        self.block = block

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Exact."""
        return attention.attention(q, k, v, "blockwise", scale=1.0, block=self.block)
