"""Learners that keep up with a stream of pairs: `update(x, y)`, `predict(x)`, and a state that does not grow."""

from __future__ import annotations

import torch
from torch import Tensor

from instar.errors import ShapeError


class RecursiveRidge:
    r"""Ridge regression by A⁻¹ ← A⁻¹ - A⁻¹x xᵀA⁻¹ / (1 + xᵀA⁻¹x) from I/λ, m ← m + yx, w = A⁻¹m (Sherman and Morrison 1950).

    Args: tasks B, width D; ridge λ > 0. Shapes: x [B, D], y [B] -> predictions [B]. O(D²) a pair; state O(D²). Raises ShapeError.
    """

    def __init__(self, tasks: int, width: int, *, ridge: float) -> None:
        if min(tasks, width) < 1 or not ridge > 0:
            raise ShapeError(f"Expected tasks and width ≥ 1 and ridge > 0; received {tasks}, {width} and {ridge}.")
        self.inverse = (torch.eye(width, dtype=torch.float64) / ridge).repeat(tasks, 1, 1)
        self.moment = torch.zeros(tasks, width, dtype=torch.float64)

    def update(self, x: Tensor, y: Tensor) -> None:
        """One more pair of each task."""
        u = torch.einsum("bij,bj->bi", self.inverse, x.double())
        denominator = 1 + (u * x).sum(-1)
        self.inverse = self.inverse - torch.einsum("bi,bj->bij", u, u) / denominator[:, None, None]
        self.moment = self.moment + y.double().unsqueeze(-1) * x

    def predict(self, x: Tensor) -> Tensor:
        """⟨w, x⟩."""
        return torch.einsum("bi,bij,bj->b", x.double(), self.inverse, self.moment)


class RunningMoment:
    r"""Linear attention as a stream: ŷ = u · (1/M Σ y_i x_i)ᵀ U x_q from a sum and a count. O(D) state; the layer exactly.

    Args: tasks B; U [D, D] and u of `LinearSelfAttention`. Without pairs 0.
    """

    def __init__(self, tasks: int, U: Tensor, u: float) -> None:
        self.U, self.u = U.double(), u
        self.sum, self.count = torch.zeros(tasks, len(U), dtype=torch.float64), 0

    def update(self, x: Tensor, y: Tensor) -> None:
        """One more pair of each task."""
        self.sum, self.count = self.sum + y.double().unsqueeze(-1) * x, self.count + 1

    def predict(self, x: Tensor) -> Tensor:
        """What the layer says."""
        return self.u * torch.einsum("bd,de,be->b", self.sum / max(1, self.count), self.U, x.double())
