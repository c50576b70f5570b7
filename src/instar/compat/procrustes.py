"""Orthogonal Procrustes: the rotation that brings new vectors nearest to old ones."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from instar.compat import fitting
from instar.compat.fitting import Moments
from instar.compat.mapping import Map
from instar.errors import ShapeError
from instar.interfaces import Monitor, Pairs

Scale = Literal["none", "one", "diagonal"]


class Procrustes(Map):
    """g(x) = s ∘ R (x − x̄) + ȳ with R = U Vᵀ, where U S Vᵀ is the SVD of the cross-covariance Σ (y − ȳ)(x − x̄)ᵀ.

    R [O, D] maximises Σ ⟨y − ȳ, R (x − x̄)⟩ among all matrices with orthonormal rows (D ≥ O) or columns (D ≤ O); where D = O it
    is the rotation or reflection of least squares (Schönemann 1966). What the pairs leave open, as when they are fewer than the
    dimensions, is decided towards no map at all.

    Args:
        centre: whether means are taken off and added; without, x̄ = ȳ = 0, and s = 1 leaves a rotation about the origin.
        scale: s, by least squares after R: `none` is 1, `one` a number, `diagonal` a number a coordinate (Drift-Adapter's). It
            weighs what is particular to x against the mean of the old vectors.

    Closed form in float64: time O(N D (D + O) + D O min(D, O)), memory O(D (D + O)) beside the pairs.
    Raises ShapeError for another scale; `fit` raises DataError for fewer than 2 pairs.
    """

    closed_form = True
    weight: Tensor
    scales: Tensor
    bias: Tensor

    def __init__(
        self, new_dim: int, old_dim: int, *, input_dim: int | None = None, centre: bool = True, scale: Scale = "one"
    ) -> None:
        super().__init__(new_dim, old_dim, input_dim=input_dim)
        if scale not in get_args(Scale):
            raise ShapeError(f"scale expects one of {', '.join(get_args(Scale))}; received {scale!r}.")
        self.centre, self.scale = centre, scale
        self.register_buffer("weight", torch.eye(old_dim, new_dim))
        self.register_buffer("scales", torch.ones(old_dim))
        self.register_buffer("bias", torch.zeros(old_dim))

    def fit(self, pairs: Pairs, *, steps: int | None = None, seed: int = 0, monitor: Monitor | None = None) -> None:
        """Solve. Raises DataError, ShapeError."""
        fitting.check(self, pairs)
        moments = Moments.of(pairs, centred=self.centre)
        rotation = nearest(moments.yx)
        scales = self._scales(rotation, moments)
        self.weight.copy_(rotation)
        self.scales.copy_(scales)
        self.bias.copy_(moments.intercept(scales[:, None] * rotation))

    def bring(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.bias, x @ self.weight.T, self.scales)

    def bases(self) -> list[Tensor]:
        """What has orthonormal rows or columns."""
        return [self.weight]

    def _scales(self, rotation: Tensor, moments: Moments) -> Tensor:
        likeness = (rotation * moments.yx).sum(1)
        length = ((rotation @ moments.xx) * rotation).sum(1)
        if self.scale == "one":
            likeness, length = (value.sum().expand_as(value) for value in (likeness, length))
        if self.scale == "none":
            return torch.ones_like(length)
        return torch.where(length > 0, likeness / length, 1.0)


def nearest(cross: Tensor) -> Tensor:
    """The matrix with orthonormal rows or columns that is nearest to [O, D]."""
    # A trace of the identity, far below what the pairs say, decides what they leave open; otherwise it would be arbitrary.
    lean = 1e-9 * cross.norm().clamp(min=1e-300) * torch.eye(*cross.shape, dtype=cross.dtype)
    left, _, right = torch.linalg.svd(cross + lean, full_matrices=False)
    return left @ right
