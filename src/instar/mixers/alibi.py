"""Attention with linear biases: distance lowers a score, each head at its own rate, and nothing else tells positions.

Press, Smith, Lewis 2021, "Train Short, Test Long: Attention with Linear Biases Enables Input Length Extrapolation" (arXiv
2108.12409).
"""

from __future__ import annotations

import torch
from torch import Tensor

from instar.kernels.eager_attention import scores
from instar.mixers.positions import slopes
from instar.mixers.softmax import Softmax


class Alibi(Softmax):
    r"""o_t = Σ_{i≤t} softmax_i(⟨q_t, k_i⟩ / √K − m_h (t − i)) v_i with m_h = 2^(−8h/H), h = 1 … H.

    Args: width, heads, kv_heads, bias as of `Softmax`.

    Shapes and state as of `Softmax`; SDPA with the biases as its mask, O(T² H) memory. Raises ShapeError. Differs from the paper:
    slopes follow the formula for every number of heads; the authors' code takes others where it is no power of two.
    """

    def __init__(self, width: int, *, heads: int = 4, kv_heads: int = 0, bias: bool = False) -> None:
        super().__init__(width, heads=heads, kv_heads=kv_heads, rope=False, bias=bias)
        self.placed = True

    def read_placed(
        self, q: Tensor, keys: Tensor, values: Tensor, attend: Tensor | None, causal: bool, where: Tensor, at: Tensor
    ) -> Tensor:
        if causal:
            row = torch.arange(q.shape[2], device=q.device)
            attend, where, at = row.unsqueeze(1) >= row, where[:1], at[:1]  # plain rows all have the same positions
        bias = self.biases(where, at).to(q.dtype)
        return self.read(q, keys, values, bias if attend is None else bias.masked_fill(~attend, -torch.inf), False)

    def score_placed(self, q: Tensor, keys: Tensor, where: Tensor, at: Tensor) -> Tensor:
        return scores(q, keys) + self.biases(where, at).to(q.dtype)

    def biases(self, where: Tensor, at: Tensor) -> Tensor:
        """−m_h (t − i), [B, H, T, C], of queries at `where` [B, T] and columns at `at` [B, C]."""
        apart = (where.unsqueeze(-1) - at.unsqueeze(-2)).unsqueeze(1)
        return -slopes(self.heads).to(where.device, torch.float32).view(-1, 1, 1) * apart
