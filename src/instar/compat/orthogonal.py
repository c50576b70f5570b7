"""Orthonormal matrices that are learnt: B · exp(A), B · Cayley(A), or a product of Householder reflections.

exp: Lezcano-Casado, "Trivializations for gradient-based optimization on manifolds", 2019 (arXiv 1909.09501), static base.
Cayley: Helfrich, Willmott, Ye 2018 (arXiv 1707.09520). Reflections: Mhammedi et al. 2017 (arXiv 1612.00188), in compact WY form.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from instar.errors import ShapeError

Parameterisation = Literal["exp", "cayley", "householder"]


class Orthogonal(nn.Module):
    """An orthonormal matrix [n, n] as a function of free numbers [n, n], of which those below the diagonal count.

    A = tril(raw, −1) − tril(raw, −1)ᵀ is skew-symmetric and starts at 0, so that the matrix starts at a random base B:
    "exp" B exp(A); "cayley" B (I + A)⁻¹ (I − A). "householder": ∏ (I − 2 v_i v_iᵀ / ‖v_i‖²) over the columns v_i of tril(raw),
    without a base. Raises ShapeError for another parameterisation.
    """

    base: Tensor

    def __init__(self, n: int, parameterisation: Parameterisation = "exp") -> None:
        super().__init__()
        if parameterisation not in get_args(Parameterisation):
            raise ShapeError(f"parameterisation expects one of {get_args(Parameterisation)}; received {parameterisation!r}.")
        self.parameterisation = parameterisation
        if parameterisation == "householder":
            self.raw = nn.Parameter(nn.functional.normalize(torch.randn(n, n).tril(), dim=0))
            self.register_buffer("base", torch.empty(0))
        else:
            self.raw = nn.Parameter(torch.zeros(n, n))
            self.register_buffer("base", uniform(n))

    def forward(self) -> Tensor:
        """The matrix [n, n]. O(n³), gradients included."""
        return self._matrix(self.raw, self.base)

    @torch.no_grad()
    def folded(self) -> Tensor:
        """The matrix as plain numbers, computed in float64."""
        return self._matrix(self.raw.double(), self.base.double())

    def _matrix(self, raw: Tensor, base: Tensor) -> Tensor:
        if self.parameterisation == "householder":
            return reflections(raw.tril())
        lower = raw.tril(-1)
        skew = lower - lower.T
        return base @ (exponential(skew) if self.parameterisation == "exp" else cayley(skew))


def uniform(n: int) -> Tensor:
    """A random orthonormal matrix, uniform over all of them."""
    q, r = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64))
    return (q * r.diagonal().sign()).to(torch.get_default_dtype())


def exponential(skew: Tensor) -> Tensor:
    """exp(A) of a skew-symmetric A, to the precision of its type: Taylor's polynomial of degree 8, scaled and squared.

    The gradient goes back through the same products. That takes a twelfth of the time of the gradient of
    `torch.matrix_exp` (n = 384), which exponentiates a matrix of twice the size.
    """
    a2 = skew @ skew
    a3, a4 = a2 @ skew, a2 @ a2
    # A skew-symmetric matrix is normal: ‖A⁴‖ = ‖A‖⁴ in the spectral norm, which the largest sum of a row bounds.
    length = float(a4.detach().abs().sum(1).max()) ** 0.25
    enough = (torch.finfo(skew.dtype).eps * math.factorial(9)) ** (1 / 9)
    squarings = max(0, math.ceil(math.log2(length / enough))) if 0 < length < math.inf else 0
    a1, a2, a3, a4 = (power * 2.0 ** (-squarings * p) for p, power in enumerate((skew, a2, a3, a4), 1))
    one = torch.eye(len(skew), dtype=skew.dtype, device=skew.device)
    found = one + a1 + a2 / 2 + a3 / 6 + a4 @ (one / 24 + a1 / 120 + a2 / 720 + a3 / 5040 + a4 / 40320)
    for _ in range(squarings):
        found = found @ found
    return found


def cayley(skew: Tensor) -> Tensor:
    """(I + A)⁻¹ (I − A) of a skew-symmetric A."""
    one = torch.eye(len(skew), dtype=skew.dtype, device=skew.device)
    return torch.linalg.solve(one + skew, one - skew)


def reflections(columns: Tensor) -> Tensor:
    """∏ (I − 2 v_i v_iᵀ / ‖v_i‖²) = I − V T Vᵀ, where T⁻¹ is the upper triangle of VᵀV with half its diagonal."""
    gram = columns.T @ columns
    inverse = gram.triu(1) + gram.diagonal().div(2).diag()
    one = torch.eye(len(columns), dtype=columns.dtype, device=columns.device)
    return one - columns @ torch.linalg.solve_triangular(inverse, columns.T, upper=True)
