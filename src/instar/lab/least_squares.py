"""Least squares over the context: of least norm, ridge, and the Bayes predictor of linear tasks."""

from __future__ import annotations

import torch
from torch import Tensor

from instar.errors import ShapeError
from instar.interfaces import InContextLearner
from instar.lab.icl import contexts


class LeastSquares(InContextLearner):
    r"""ŷ = ⟨w, x⟩ with w = argmin_w ‖Xw - y‖² + λ‖w‖² = (XᵀX + λI)⁻¹ Xᵀy; for λ = 0 the minimum of least norm, X⁺y.

    Args:
        ridge: λ ≥ 0. No intercept.

    Shapes: as of `InContextLearner`. Without examples w = 0. Raises ShapeError. O(N D² + D³) a task. Singular values below
    D · ε of the largest count as 0 when λ = 0. Source: Akyürek et al. 2023, section 4.
    """

    def __init__(self, *, ridge: float = 0.0) -> None:
        if not ridge >= 0:
            raise ShapeError(f"ridge must be at least 0; received {ridge}.")
        self.ridge = ridge

    def weights(self, xs: Tensor, ys: Tensor) -> Tensor:
        """w of each task, [B, D]."""
        contexts.pairs(xs, ys)
        B, N, D = xs.shape
        if N == 0:
            return xs.new_zeros(B, D)
        if self.ridge == 0:
            return (torch.linalg.pinv(xs) @ ys.unsqueeze(-1)).squeeze(-1)
        gram = xs.mT @ xs + self.ridge * torch.eye(D, dtype=xs.dtype, device=xs.device)
        return torch.linalg.solve(gram, (xs.mT @ ys.unsqueeze(-1)).squeeze(-1))

    def predict(self, xs: Tensor, ys: Tensor, x_query: Tensor) -> Tensor:
        """⟨w, x⟩ of each query."""
        contexts.fitting(xs, ys, x_query)
        return torch.einsum("bqd,bd->bq", x_query, self.weights(xs, ys))
