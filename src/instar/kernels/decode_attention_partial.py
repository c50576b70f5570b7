"""Partial results of softmax attention, which add up over any partition of the keys, in any order."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from instar.errors import ShapeError


class Partial(NamedTuple):
    """What is known of a query after a set of keys: m = max x, l = Σ e^{x - m}, a = Σ e^{x - m} v. The empty set: -∞, 0, 0.

    From an output and its log-sum-exp it is `Partial(lse, torch.ones_like(lse), out)`.
    """

    m: Tensor
    """[…]"""
    l: Tensor  # noqa: E741 - the paper's name
    """[…]"""
    a: Tensor
    """[…, V]"""

    def output(self) -> tuple[Tensor, Tensor]:
        """o = a / l [..., V] and the log-sum-exp m + ln l [...]; of no keys 0 and -∞."""
        some = torch.where(self.l == 0, 1.0, self.l)
        return self.a / some.unsqueeze(-1), self.m + torch.where(self.l == 0, 0.0, some.log())


def partial(q: Tensor, keys: Tensor, values: Tensor, scale: float) -> Partial:
    """Of queries [..., G, K] over keys [..., N, K] and values [..., N, V], in float32 or better. O(G N (K + V))."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    x = (q.to(dtype) * scale) @ keys.to(dtype).transpose(-1, -2)
    if x.shape[-1] == 0:
        return Partial(x.new_full(x.shape[:-1], -torch.inf), x.new_zeros(x.shape[:-1]), x @ values.to(dtype))
    m = x.amax(-1)
    weights = (x - _finite(m).unsqueeze(-1)).exp()
    return Partial(m, weights.sum(-1), weights @ values.to(dtype))


def merge_partials(parts: Iterable[Partial]) -> Partial:
    r"""The partial result over the union of disjoint sets of keys.

    m = max_i m_i;  l = Σ_i e^{m_i - m} l_i;  a = Σ_i e^{m_i - m} a_i: associative and commutative, with the empty set as its
    identity. All parts have the same shapes. Raises ShapeError for parts of different shapes, and for none at all.
    Source: Sanovar et al. 2024 (arXiv 2405.10480), section 4.
    """
    found = list(parts)
    if not found or any(part.a.shape != found[0].a.shape or part.m.shape != found[0].m.shape for part in found):
        raise ShapeError(f"merge_partials expects parts of one shape; received {[tuple(part.a.shape) for part in found]}.")
    m = torch.stack([part.m for part in found]).amax(0)
    weights = [(part.m - _finite(m)).exp() for part in found]
    total = torch.stack([w * part.l for w, part in zip(weights, found, strict=True)]).sum(0)
    summed = torch.stack([w.unsqueeze(-1) * part.a for w, part in zip(weights, found, strict=True)]).sum(0)
    return Partial(m, total, summed)


def _finite(m: Tensor) -> Tensor:
    """-∞ as 0, so that -∞ - -∞ is never evaluated."""
    return torch.where(m == -torch.inf, 0.0, m)
