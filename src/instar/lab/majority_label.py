"""The label that was seen most."""

from __future__ import annotations

from torch import Tensor

from instar.interfaces import InContextLearner
from instar.lab.icl import contexts


class MajorityLabel(InContextLearner):
    r"""ŷ = (1/N) Σ y_i, whatever the query is; of two classes its sign. The null of all accuracies.

    Without examples 0. Raises ShapeError. O(N) a task. Source: Bhattamishra et al. 2024, section 4.
    """

    def predict(self, xs: Tensor, ys: Tensor, x_query: Tensor) -> Tensor:
        """The mean label."""
        contexts.fitting(xs, ys, x_query)
        return (ys.sum(1) / max(1, ys.shape[1])).unsqueeze(1).expand(x_query.shape[:2]).clone()
