"""Polynomial features of keys and queries: what a linear map of them can tell apart grows with the degree.

Behrouz et al. 2025, "ATLAS: Learning to Optimally Memorize the Context at Test Time" (arXiv 2505.23735), section 3.1; the sketch:
a random projection of monomials, fixed at the start.
"""

from __future__ import annotations

import itertools
import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.errors import ShapeError

Kind = Literal["exact", "elementwise", "sketch"]


class PolynomialFeatures(nn.Module):
    r"""φ(x) for x [..., K] of length 1, with learnt coefficients a_i ≥ 0 that start at 1 / i!, the series of exp.

        exact        all C(K + p, p) monomials up to degree p, so that ⟨φ(x), φ(y)⟩ = Σ_i a_i (xᵀy)^i / Σ_i a_i, i = 0 … p
        elementwise  Σ_i a_i x^i by element, i = 1 … p, over its length: K features, no products of two elements
        sketch       a fixed random projection of the exact ones to K features, over its length

    All have length 1, which keeps inner steps near 1 stable. A monomial of degree i has the root of its multinomial coefficient.

    Args:
        width: K. degree: p ≥ 1; 1 is φ(x) = x for every kind. kind: as above.

    Attributes: `size`, the number of features. O(C(K + p, p) p) time a token; the sketch K times that.
    """

    def __init__(self, width: int, degree: int = 2, kind: Kind = "exact") -> None:
        super().__init__()
        if degree < 1 or kind not in get_args(Kind):
            raise ShapeError(
                f"degree must be positive and kind one of {', '.join(get_args(Kind))}; received {degree} and '{kind}'."
            )
        self.degree, self.kind, self.size = degree, kind, width
        if degree == 1:
            return
        start = 1 if kind == "elementwise" else 0
        powers = torch.arange(start, degree + 1)
        self.raw = nn.Parameter(torch.expm1(1 / torch.exp(torch.lgamma(powers + 1.0))).log())  # softplus of it is 1 / i!
        if kind == "elementwise":
            return
        for i in range(2, degree + 1):
            choices = list(itertools.combinations_with_replacement(range(width), i))
            self.register_buffer(f"index{i}", torch.tensor(choices).T.contiguous(), persistent=False)
            roots = [math.sqrt(math.factorial(i) / math.prod(math.factorial(c.count(j)) for j in set(c))) for c in choices]
            self.register_buffer(f"root{i}", torch.tensor(roots), persistent=False)
        total = math.comb(width + degree, degree)
        if kind == "sketch":
            self.register_buffer("projection", torch.randn(total, width) / math.sqrt(width))
        else:
            self.size = total

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] to [..., size]."""
        if self.degree == 1:
            return x
        a = F.softplus(self.raw.to(x.dtype))
        if self.kind == "elementwise":
            powers = torch.stack([x**i for i in range(1, self.degree + 1)], dim=-1)
            return _unit(powers @ a)
        root = (a / a.sum()).sqrt()
        parts = [root[0].expand(*x.shape[:-1], 1), root[1] * x]
        for i in range(2, self.degree + 1):
            first, *others = self.get_buffer(f"index{i}")
            monomials = x[..., first]
            for column in others:
                monomials = monomials * x[..., column]
            parts.append(monomials * (root[i] * self.get_buffer(f"root{i}").to(x.dtype)))
        features = torch.cat(parts, dim=-1)
        return features if self.kind == "exact" else _unit(features @ self.get_buffer("projection").to(x.dtype))


def _unit(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)
