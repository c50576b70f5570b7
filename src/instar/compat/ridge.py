"""Ridge regression from new vectors to old ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from instar.compat import fitting
from instar.compat.fitting import Moments
from instar.compat.mapping import Map
from instar.errors import ShapeError
from instar.interfaces import Monitor, Pairs

GRID = tuple(10 ** (k / 4) for k in range(-32, 5))
"""Penalties among which cross-validation chooses. Unit vectors have a mean square of 1, so that 10 is all but the mean."""


class Ridge(Map):
    """g(x) = W x + b, where W and b minimise mean ‖y − W x − b‖² + penalty · ‖W‖²_F over unit vectors x (new) and y (old).

    Args:
        intercept: whether there is a b; it is not penalised.
        penalty: a pair (N times as much is what scikit-learn calls alpha); None chooses from 1e-8 … 10 by generalised
            cross-validation (Golub, Heath, Wahba 1979), that is leave-one-out with the leverages replaced by their mean.

    Closed form in float64: time O(N D (D + O) + D³), memory O(D (D + O)) beside the pairs.
    Raises ShapeError for a negative penalty; `fit` raises DataError for fewer than 2 pairs.
    """

    closed_form = True
    weight: Tensor
    bias: Tensor

    def __init__(
        self, new_dim: int, old_dim: int, *, input_dim: int | None = None, intercept: bool = True, penalty: float | None = None
    ) -> None:
        super().__init__(new_dim, old_dim, input_dim=input_dim)
        if penalty is not None and not 0 <= penalty < float("inf"):
            raise ShapeError(f"penalty expects a number of 0 or more, or None; received {penalty}.")
        self.intercept, self.penalty = intercept, penalty
        self.register_buffer("weight", torch.zeros(old_dim, new_dim))
        self.register_buffer("bias", torch.zeros(old_dim))

    def fit(self, pairs: Pairs, *, steps: int | None = None, seed: int = 0, monitor: Monitor | None = None) -> None:
        """Solve. Raises DataError, ShapeError."""
        fitting.check(self, pairs)
        weight, bias = solve(Moments.of(pairs, centred=self.intercept), self.penalty)
        self.weight.copy_(weight)
        self.bias.copy_(bias)

    def bring(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


def solve(moments: Moments, penalty: float | None) -> tuple[Tensor, Tensor]:
    """W [O, D] and b [O] of ridge regression, from its moments."""
    values, basis = torch.linalg.eigh(moments.xx)
    values = values.clamp(min=0)
    turned = moments.yx @ basis
    chosen = cross_validated(moments, values, turned, GRID) if penalty is None else penalty
    # Directions without variance carry nothing: without a penalty they get the smallest solution, as least squares does.
    smallest = values[-1] * len(values) * torch.finfo(values.dtype).eps
    gain = torch.where(values + chosen > smallest, 1 / (values + chosen), 0.0)
    weight = (turned * gain) @ basis.T
    return weight, moments.intercept(weight)


def cross_validated(moments: Moments, values: Tensor, turned: Tensor, grid: Sequence[float]) -> float:
    """The penalty of the grid that minimises RSS(p) / (1 − tr H(p) / N)².

    Both follow from the eigenvalues of the moments: nothing here grows with the number of pairs.
    """
    explained = turned.square().sum(0)
    centred = float(bool(moments.mean_x.any()) or bool(moments.mean_y.any()))

    def score(penalty: float) -> float:
        shrunk = values + penalty
        residual = moments.yy - float((explained * (2 / shrunk - values / shrunk.square())).sum())
        left = 1 - (float((values / shrunk).sum()) + centred) / moments.items
        # A residual below the precision of the sums is none; the larger penalty, which leaves more, is then the better.
        return max(residual, 1e-14 * moments.yy) / max(left, 1e-12) ** 2

    return min(grid, key=score)
