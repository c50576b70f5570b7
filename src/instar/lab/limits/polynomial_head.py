"""Attention whose exponential is a polynomial, so that its gradient is almost linear in the length."""

from __future__ import annotations

from torch import Tensor

from instar.adapters.limits import attention
from instar.adapters.limits.polynomial import LARGEST_DEGREE
from instar.errors import ShapeError
from instar.interfaces import AttentionHead


class PolynomialHead(AttentionHead):
    r"""f ≈ D⁻¹ φ(Q) φ(K)ᵀ with the binom(D + g, g) monomials of degree at most g, and the gradient by chained thin factors.

    Args: degree: g, even: an odd Taylor polynomial is negative somewhere.

    Taylor's polynomial up to scores of 1, beyond it that of least relative error at Chebyshev's nodes, on the range that the
    largest norms allow. Float64 inside. O((L + M) k₁ D E) time. Raises ShapeError, DivergedError. Source: Hu et al. 2024
    (arXiv 2406.03136), theorem 3.1.
    """

    def __init__(self, *, degree: int = 6) -> None:
        if degree < 2 or degree % 2 or degree > LARGEST_DEGREE:
            raise ShapeError(f"The degree is even, from 2 to {LARGEST_DEGREE}; received {degree}.")
        self.degree = degree

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Nearly softmax attention."""
        return attention.attention(q, k, v, "poly", degree=self.degree, scale=1.0)
