r"""What the gates of a memory say about a chunk, before anything of its weights is known.

With S_n what steps are made of, and D_n = S_n or NS(S_n),

    S_t = hold_t S_0 + Σ_i into_ti G_i,     W_t = keep_t W_0 - Σ_{n≤t} out_tn D_n

where hold and keep are running products of θ and α, and the sums go over the tokens before the chunk and those in it. Where D = S
both are one: W_t = keep_t W_0 - carry_t S_0 - Σ_i read_ti G_i. Behrouz et al. 2025, arXiv 2505.23735, section 5.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Gates(NamedTuple):
    """Of N chunks of C tokens in R rows, n = C + c - 1 tokens in sight. Without momentum hold and carry are zero, and unused."""

    keep: Tensor
    """[N, R, C, 1]"""
    hold: Tensor
    """[N, R, C, 1]"""
    carry: Tensor
    """[N, R, C, 1]"""
    into: Tensor
    """[N, R, C, n]"""
    out: Tensor
    """[N, R, C, C]"""
    read: Tensor
    """[N, R, C, n]"""

    def split(self, size: int) -> list[Gates]:
        """Of `size` chunks each. (Slices would each hand back a gradient as long as the whole.)"""
        return [Gates(*part) for part in zip(*(x.split(size) for x in self), strict=True)]

    def each(self) -> list[Gates]:
        """Of every chunk, without its axis."""
        return [Gates(*part) for part in zip(*(x.unbind() for x in self), strict=True)]

    def last(self) -> list[Gates]:
        """Of the last token of every chunk, [R, 1, ·]."""
        return Gates(*(x[:, :, -1:] for x in self)).each()


def gates(log_alpha: Tensor, log_theta: Tensor | None, eta: Tensor, gamma: Tensor, real: Tensor, *, muon: bool) -> Gates:
    """log_alpha, log_theta, eta [N, R, C, 1], gamma [N, R, C, c]; real [N, R, C, 1] is 0 where no token stands, where the others
    are 0 too, and 1 elsewhere. With Muon, η scales the steps, without it what goes into S."""
    kept, keep = _products(log_alpha)
    window = _band(gamma)
    into = window if muon else eta * window
    out = kept * (eta if muon else real).mT
    if log_theta is None:
        hold = carry = torch.zeros_like(keep)
    else:
        held, hold = _products(log_theta)
        into, carry = held @ into, out @ hold
    return Gates(keep, hold, carry, into, out, out @ into)


def _products(log_factor: Tensor) -> tuple[Tensor, Tensor]:
    """Products over n < τ ≤ t for n ≤ t, [N, R, C, C], zero above; and those over τ ≤ t."""
    total = log_factor.cumsum(-2)
    later = torch.ones(total.shape[-2], total.shape[-2], dtype=torch.bool, device=total.device).triu_(1)
    return (total - total.mT).masked_fill(later, -torch.inf).exp(), total.exp()


def _band(gamma: Tensor) -> Tensor:
    """[..., C, c], the weight of token t - j at step t, to [..., C, C + c - 1], that of token i, counted from c - 1 before."""
    *_, C, c = gamma.shape
    n = C + c - 1
    return F.pad(gamma.flip(-1), (0, n + 1 - c)).flatten(-2)[..., : C * n].unflatten(-1, (C, n))
