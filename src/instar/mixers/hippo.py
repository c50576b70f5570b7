"""HiPPO-LegS, the system that remembers its past as Legendre coefficients, and its form of a normal matrix less one of rank one.

Gu, Dao, Ermon, Rudra, Ré 2020, "HiPPO: Recurrent Memory with Optimal Polynomial Projections" (arXiv 2008.07669); Gu, Goel, Ré
2022, "Efficiently Modeling Long Sequences with Structured State Spaces" (arXiv 2111.00396), theorem 1.
"""

from __future__ import annotations

import torch
from torch import Tensor


def legs(size: int) -> tuple[Tensor, Tensor]:
    """A_nk = -√((2n+1)(2k+1)) below the diagonal, -(n+1) on it, 0 above, and B_n = √(2n+1): float64 [N, N] and [N]."""
    n = torch.arange(size, dtype=torch.float64)
    root = (2 * n + 1).sqrt()
    return -torch.outer(root, root).tril(-1) - torch.diag(n + 1), root


def normal_plus_low_rank(size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Λ, P and V, complex128 [N/2], [N/2] and [N, N/2], of `legs` with N even: A = V Λ V* + conjugate - (V P + conjugate)(…)ᵀ.

    A + P Pᵀ with P_n = √(n + 1/2) is -1/2 plus a skew matrix S, and -iS is Hermitian. Of each conjugate pair the eigenvalue with
    positive imaginary part is returned, and eigenvectors are turned so that P, and B = √2 P with it, are real and positive.
    """
    A, B = legs(size)
    P = B / 2**0.5
    skew = A + torch.outer(P, P) + torch.eye(size, dtype=A.dtype) / 2
    values, vectors = (part[..., size // 2 :] for part in torch.linalg.eigh(-1j * skew))
    turned = vectors.conj().mT @ P.to(vectors.dtype)
    vectors = vectors * (turned / turned.abs())
    return torch.complex(torch.full_like(values, -0.5), values), turned.abs().to(vectors.dtype), vectors
