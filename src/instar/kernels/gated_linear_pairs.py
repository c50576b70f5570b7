r"""P_ij = Σ_k q_ik k_jk Π_{j<l≤i} α_lk inside chunks, for any gates α in [0, 1]: no overflow, no cancellation, no clamp.

A chunk is halved again and again. In a block of two halves that meet at m, the square of later queries and earlier keys is one
product of q_i A_i, A_i = Π_{m<l≤i} α_l, and k_j Z_j, Z_j = Π_{j<l≤m} α_l: both factors are products of gates, at most 1. Going
up from halves of one token, each level makes its A and Z from those below by one multiplication; at the top they are e^b and
e^{b_C - b} of the whole chunk. This is the paper's secondary chunking taken to its end: the anchors lie at every power of
two, and not one exponential is taken after α itself.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def pairs(q: Tensor, k: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """P [M, C, C] (its upper triangle is zero), A and Z [M, C, K or 1], from q, k [M, C, K] and α [M, C, K or 1]."""
    P = q.new_zeros(q.shape[0], q.shape[1], q.shape[1])
    P.diagonal(0, 1, 2).copy_((q * k).sum(-1))
    A, Z = alpha.clone(), torch.ones_like(alpha)
    for s, A_late, Z_early in _levels(A, Z):
        later, earlier = _half(q, s, 1) * A_late, _half(k, s, 0) * Z_early
        _square(P, s).copy_(torch.bmm(later.flatten(0, 1), earlier.flatten(0, 1).mT).view(q.shape[0], -1, s, s))
    return P, A, Z


def pairs_backward(dP: Tensor, q: Tensor, k: Tensor, alpha: Tensor, dq: Tensor, dk: Tensor) -> None:
    """Add to dq and dk [M, C, K] what comes through P. The levels are made again instead of kept."""
    here = dP.diagonal(0, 1, 2).unsqueeze(-1)
    dq.addcmul_(here, k)
    dk.addcmul_(here, q)
    for s, A_late, Z_early in _levels(alpha.clone(), torch.ones_like(alpha)):
        later, earlier = _half(q, s, 1) * A_late, _half(k, s, 0) * Z_early
        d_square = _square(dP, s).reshape(-1, s, s)
        _half(dq, s, 1).addcmul_(torch.bmm(d_square, earlier.flatten(0, 1)).view_as(later), A_late)
        _half(dk, s, 0).addcmul_(torch.bmm(d_square.mT, later.flatten(0, 1)).view_as(earlier), Z_early)


def decays(alpha: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Γ [M, C, C] with Γ_ij = Π_{j<l≤i} α_l (1 at i = j, 0 above), A and Z [M, C, 1], from α [M, C, 1]: pairs of gates alone."""
    decay = alpha.new_zeros(alpha.shape[0], alpha.shape[1], alpha.shape[1])
    decay.diagonal(0, 1, 2).fill_(1.0)
    A, Z = alpha.clone(), torch.ones_like(alpha)
    for s, A_late, Z_early in _levels(A, Z):
        _square(decay, s).copy_(A_late * Z_early.mT)
    return decay, A, Z


def _levels(A: Tensor, Z: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(s, A of the later halves, Z of the earlier ones) for halves of s = 1, 2, 4, … tokens; A and Z grow in place."""
    s = 1
    while s < A.shape[1]:
        A_early, A_late, Z_early = _half(A, s, 0), _half(A, s, 1), _half(Z, s, 0)
        yield s, A_late, Z_early
        Z_early.mul_(A_late[:, :, -1:])
        A_late.mul_(A_early[:, :, -1:])
        s *= 2


def _half(x: Tensor, s: int, which: int) -> Tensor:
    """The earlier (0) or later (1) halves of all blocks of 2s tokens: a view [M, C / 2s, s, X]."""
    return x.view(x.shape[0], -1, 2, s, x.shape[-1])[:, :, which]


def _square(P: Tensor, s: int) -> Tensor:
    """Later queries by earlier keys of all blocks of 2s tokens: a view [M, C / 2s, s, s] of P [M, C, C]."""
    M, C, _ = P.shape
    blocks = C // (2 * s)
    return P.view(M, blocks, 2, s, blocks, 2, s)[:, :, 1, :, :, 0].diagonal(0, 1, 3).permute(0, 3, 1, 2)
