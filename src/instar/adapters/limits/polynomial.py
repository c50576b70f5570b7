"""Polynomials near the exponential, and their features: the kernel exp(q·k) as an inner product of finitely many monomials."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from instar.errors import DivergedError, ShapeError

Basis = Literal["taylor", "chebyshev"]
LARGEST_DEGREE = 24
"""Beyond it float64 cannot tell the monomials apart."""
_LARGEST_REACH = 350.0


@dataclass(frozen=True)
class Polynomial:
    """P(t) = Σ_n a_n t^n, near exp(t) for |t| ≤ reach."""

    coefficients: tuple[float, ...]
    reach: float

    @property
    def degree(self) -> int:
        return len(self.coefficients) - 1

    @functools.cached_property
    def error(self) -> float:
        """max |P(t) / exp(t) - 1| over the range, on a grid. Below 1 it is positive there, as a softmax needs it."""
        t = np.linspace(-self.reach, self.reach, 801)
        return float(np.abs(np.polynomial.polynomial.polyval(t, self.coefficients) * np.exp(-t) - 1).max())

    def __call__(self, t: Tensor) -> Tensor:
        total = torch.full_like(t, self.coefficients[-1])
        for a in self.coefficients[-2::-1]:
            total = total * t + a
        return total

    def rank(self, width: int) -> int:
        """binom(d + g, g): how many features P(q·k) has for q and k of this width d."""
        return math.comb(width + self.degree, self.degree)


def taylor(degree: int, reach: float = 1.0) -> Polynomial:
    """a_n = 1 / n!. Raises ShapeError."""
    _require(degree, reach)
    return Polynomial(tuple(1 / math.factorial(n) for n in range(degree + 1)), reach)


def chebyshev(degree: int, reach: float) -> Polynomial:
    """The polynomial of least mean squared *relative* error at Chebyshev's nodes of [-reach, reach], near the best there is.

    Relative, since a softmax divides by sums of exponentials. Raises ShapeError; DivergedError where float64 cannot hold the
    squares of the exponentials of such scores.
    """
    _require(degree, reach)
    if reach > _LARGEST_REACH:
        raise DivergedError(
            f"No polynomial stands for the exponential of scores up to ±{reach:.3g}: float64 ends near ±{_LARGEST_REACH:g}. Use "
            "the exact gradient (mode blockwise or auto), or smaller norms."
        )
    if reach == 0:
        return taylor(degree, reach)
    count = 8 * (degree + 1)
    x = np.cos(np.pi * (np.arange(count) + 0.5) / count)
    weights = np.exp(-reach * x)
    basis = np.polynomial.chebyshev.chebvander(x, degree) * weights[:, None]
    size = np.linalg.norm(basis, axis=0)
    found = np.linalg.lstsq(basis / size, np.ones(count), rcond=None)[0] / size
    scaled = np.polynomial.chebyshev.cheb2poly(found)
    scaled = np.pad(scaled, (0, degree + 1 - len(scaled)))  # cheb2poly drops zeros at the end
    return Polynomial(tuple(float(a) / reach**n for n, a in enumerate(scaled)), reach)


BASES: dict[Basis, Callable[[int, float], Polynomial]] = {"taylor": taylor, "chebyshev": chebyshev}


def smallest(reach: float, tolerance: float, largest: int = LARGEST_DEGREE) -> Polynomial | None:
    """The polynomial of least even degree whose relative error over [-reach, reach] is at most `tolerance`; None where none is.

    Taylor's where the reach is at most 1, Chebyshev's beyond, as long as numbers of float64 tell them apart. Raises ShapeError.
    """
    if not 0 < tolerance < 1:
        raise ShapeError(f"tolerance must be a relative error between 0 and 1; received {tolerance}.")
    _require(largest, reach)
    if reach > 2 * LARGEST_DEGREE:  # a degree near the reach is needed at least
        return None
    make = taylor if reach <= 1 else chebyshev
    for degree in range(0, min(largest, LARGEST_DEGREE) + 1, 2):
        found = make(degree, reach)
        if found.error <= tolerance:
            return found
    return None


class Features:
    """φ and ψ with φ(q)·ψ(k) = P(q·k): all monomials of degree at most g in d variables.

    The entry of the monomial m is √(|a_n| n! / (m_1! … m_d!)) x^m with n = |m|; φ carries the sign of a_n. O(L k_1) time and
    memory for L rows, k_1 = binom(d + g, g), each monomial being an earlier one times one variable.
    """

    def __init__(self, polynomial: Polynomial, width: int, dtype: torch.dtype = torch.float64) -> None:
        if width < 1:
            raise ShapeError(f"Features need vectors of at least one number; received width {width}.")
        self.polynomial, self.width = polynomial, width
        monomials: list[tuple[int, ...]] = [(0,) * width]
        first = {0: 0}  # the monomials of one degree whose last variable is at most v are made from those before them
        parents, variables, places = [], [], {monomials[0]: 0}
        for _ in range(polynomial.degree):
            start, end = first[max(first)], len(monomials)
            first[len(first)] = end
            for place in range(start, end):
                last = max((v for v, power in enumerate(monomials[place]) if power), default=0)
                for v in range(last, width):
                    made = tuple(power + (u == v) for u, power in enumerate(monomials[place]))
                    places[made] = len(monomials)
                    monomials.append(made)
                    parents.append(place)
                    variables.append(v)
        self._levels = [first[n] for n in range(len(first))] + [len(monomials)]
        self._parents, self._variables = torch.tensor(parents, dtype=torch.int64), torch.tensor(variables, dtype=torch.int64)
        weights, signs = [], []
        for m in monomials:
            a = polynomial.coefficients[sum(m)]
            weights.append(math.sqrt(abs(a) * math.factorial(sum(m)) / math.prod(map(math.factorial, m))))
            signs.append(math.copysign(1.0, a))
        self._weights, self._signs = torch.tensor(weights, dtype=dtype), torch.tensor(signs, dtype=dtype)
        self.count = len(monomials)

    def keys(self, x: Tensor) -> Tensor:
        """ψ of x [..., d] -> [..., k_1]. Raises ShapeError."""
        return self._powers(x) * self._weights.to(x)

    def queries(self, x: Tensor) -> Tensor:
        """φ of x [..., d] -> [..., k_1]. Raises ShapeError."""
        return self._powers(x) * (self._weights * self._signs).to(x)

    def _powers(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.width:
            raise ShapeError(f"Features of width {self.width} cannot read {tuple(x.shape)}.")
        found = x.new_ones(*x.shape[:-1], 1)
        parts = [found]
        parents, variables = self._parents.to(x.device), self._variables.to(x.device)
        for n in range(1, len(self._levels) - 1):
            low, high = self._levels[n] - 1, self._levels[n + 1] - 1  # the constant has no parent
            found = found[..., parents[low:high] - self._levels[n - 1]] * x[..., variables[low:high]]
            parts.append(found)
        return torch.cat(parts, -1)


def _require(degree: int, reach: float) -> None:
    if not (isinstance(degree, int) and 0 <= degree <= LARGEST_DEGREE and 0 <= reach < math.inf):
        raise ShapeError(
            f"A polynomial needs a degree of 0 to {LARGEST_DEGREE} and a finite reach of at least 0; received degree {degree}, "
            f"reach {reach}."
        )
