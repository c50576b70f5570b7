"""The phase transition: how the error of the polynomial gradient depends on the size of queries and keys, measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from instar.adapters.limits import gradients
from instar.adapters.limits.polynomial import BASES, Basis, Features
from instar.errors import DivergedError, ShapeError


@dataclass(frozen=True)
class Point:
    """One size and degree."""

    size: float
    """Γ, the largest entry of queries and keys."""
    ratio: float
    """Γ / √(ln L)"""
    degree: int
    error: float
    """‖∂A found - ∂A‖ / ‖∂A‖ of the query's adapter; infinite where the weights add up to nothing positive."""


def phase_transition(
    tokens: int = 512,
    width: int = 3,
    sizes: Sequence[float] = (0.25, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0),
    degrees: Sequence[int] = (2, 4, 6, 8, 12),
    *,
    basis: Basis = "taylor",
    rank: int = 2,
    seed: int = 0,
) -> list[Point]:
    """Relative error of ∂loss/∂A_Q for one head, its scores unscaled as in the paper. O(L² d + L k_1 d²) a point.

    Inputs, queries, keys, values, upstream gradient and B [d, rank] are normal, in float64; the largest entry of queries and of
    keys is set to Γ. Raises ShapeError.
    """
    if tokens < 2 or width < 1 or rank < 1 or any(size <= 0 for size in sizes):
        raise ShapeError(
            f"Expected tokens ≥ 2, width and rank ≥ 1, sizes > 0; received {tokens}, {width}, {rank}, {list(sizes)}."
        )
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, q, k, v, up = (draw(1, tokens, width) for _ in range(5))
    b = draw(width, rank)
    found = []
    for size in sizes:
        queries, keys = (size * t / t.abs().max() for t in (q, k))
        want = b.T @ gradients.dense(queries, keys, v, up, 1.0, False)[0][0].T @ x[0]
        reach = float(queries.norm(dim=-1).max() * keys.norm(dim=-1).max())
        for degree in degrees:
            features = Features(BASES[basis](degree, reach), width)
            try:
                kept = gradients.polynomial_forward(queries, keys, v, features, False)
                got = b.T @ gradients.polynomial(queries, keys, v, up, kept, features, False)[0][0].T @ x[0]
                error = float((got - want).norm() / want.norm())
            except DivergedError:
                error = math.inf
            found.append(Point(size, size / math.sqrt(math.log(tokens)), degree, error))
    return found


def plot(points: Sequence[Point]) -> Any:
    """The errors over Γ / √(ln L), a line a degree: a matplotlib figure. Raises MissingExtraError."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for degree in sorted({point.degree for point in points}):
        line = [point for point in points if point.degree == degree and math.isfinite(point.error)]
        axes.plot([p.ratio for p in line], [p.error for p in line], marker="o", label=f"degree {degree}")
    axes.axvline(1.0, color="grey", linestyle=":")
    axes.axhline(0.01, color="grey", linestyle=":")
    axes.set(yscale="log", xlabel="largest entry of queries and keys / √(ln L)", ylabel="relative error of the gradient of A")
    axes.legend()
    return figure
