"""The perceptron, fitted anew to the examples of every context: a learner in context has to beat it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from instar.errors import ShapeError
from instar.interfaces import InContextLearner
from instar.lab.icl import contexts


class Perceptron(InContextLearner):
    r"""w ← w + y_i x̃_i for each example with y_i ⟨w, x̃_i⟩ ≤ 0, x̃ = [x, 1], in order, for `passes` passes from w = 0.

    Args: passes: over the examples; tasks whose examples are all answered stay as they are.

    xs [B, N, D], ys [B, N], x_query [B, Q, D] -> ⟨w, x̃⟩ [B, Q]. Raises ShapeError. O(passes N D).
    Sources: Rosenblatt 1958; Bhattamishra et al. 2024 (arXiv 2310.03016), who compare with it.
    """

    def __init__(self, *, passes: int = 10) -> None:
        if passes < 1:
            raise ShapeError(f"A perceptron expects passes ≥ 1; received {passes}.")
        self.passes = passes

    def predict(self, xs: Tensor, ys: Tensor, x_query: Tensor) -> Tensor:
        """The sum whose sign is the class."""
        contexts.fitting(xs, ys, x_query)
        shown, signs = F.pad(xs, (0, 1), value=1.0), contexts.signs(ys)
        w = torch.zeros_like(shown[:, :1]).sum(1)
        for _ in range(self.passes):
            before = w
            for i in range(xs.shape[1]):
                wrong = signs[:, i] * (w * shown[:, i]).sum(-1) <= 0
                w = w + (wrong * signs[:, i]).unsqueeze(-1) * shown[:, i]
            if torch.equal(w, before):
                break
        return torch.einsum("bqd,bd->bq", F.pad(x_query, (0, 1), value=1.0), w)
