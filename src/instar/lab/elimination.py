"""The exact learner of conjunctions and disjunctions."""

from __future__ import annotations

import torch
from torch import Tensor

from instar.interfaces import InContextLearner
from instar.lab.icl import contexts


class Elimination(InContextLearner):
    r"""1 if x satisfies every literal that all positive examples satisfy, else −1: the smallest consistent conjunction.

    Args:
        disjunction: learn a disjunction, as the negated conjunction of negated literals (De Morgan). monotone: literals without
            negations alone.

    It is never wrong on negatives (positives of a disjunction) of its class. Inputs are read by their signs. Raises ShapeError.
    O(N D) a task. Source: Valiant 1984; Bhattamishra et al. 2024.
    """

    def __init__(self, *, disjunction: bool = False, monotone: bool = False) -> None:
        self.disjunction, self.monotone = disjunction, monotone

    def predict(self, xs: Tensor, ys: Tensor, x_query: Tensor) -> Tensor:
        """−1 or 1."""
        contexts.fitting(xs, ys, x_query)
        sign = -1 if self.disjunction else 1
        positive = (sign * ys > 0).unsqueeze(-1)
        true, asked = sign * xs > 0, sign * x_query > 0
        if not self.monotone:
            true, asked = torch.cat([true, ~true], -1), torch.cat([asked, ~asked], -1)
        kept = (true | ~positive).all(1, keepdim=True)
        said = (asked | ~kept).all(-1)
        return sign * torch.where(said, 1.0, -1.0).to(xs.dtype)
