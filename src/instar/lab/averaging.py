"""Averaging: the simplest use of all examples."""

from __future__ import annotations

from torch import Tensor

from instar.interfaces import InContextLearner
from instar.lab.icl import contexts


class Averaging(InContextLearner):
    r"""ŷ = ⟨w, x⟩ with w = (1/N) Σ y_i x_i; of two classes, its sign. One step of gradient descent of rate 1/2N from zero.

    Without examples 0. Raises ShapeError. O(N D) a task. Source: Bhattamishra et al. 2024, section 4.
    """

    def predict(self, xs: Tensor, ys: Tensor, x_query: Tensor) -> Tensor:
        """⟨w, x⟩ of each query."""
        contexts.fitting(xs, ys, x_query)
        w = (xs * ys.unsqueeze(-1)).sum(1) / max(1, xs.shape[1])
        return (x_query * w.unsqueeze(1)).sum(-1)
