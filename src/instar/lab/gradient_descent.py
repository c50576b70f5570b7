"""Gradient descent on the context's squared error, from zero."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from instar.errors import ShapeError
from instar.interfaces import InContextLearner
from instar.lab.icl import contexts

Rule = Literal["batch", "one_pass", "newton"]


class GradientDescent(InContextLearner):
    r"""Batch: w ← w - 2α (Xᵀ(Xw - y) + λw), `steps` times. One pass: w ← w - 2α (x_i (⟨w, x_i⟩ - y_i) + λw), i = 1 … N.

    Newton: W ← 2W - W S W from W = S / ‖S‖₁‖S‖_∞, `steps` times, with S = XᵀX + λI, then w = W Xᵀy: the iteration for an inverse,
    each step of which squares the error, where one step of gradient descent shrinks it.

    Args:
        lr: α; no part of Newton's iteration. steps: of batch and Newton; a single pass over the examples has as many as
        there are.
        rule: one of the three. ridge: λ ≥ 0.
        mean: divide the gradient of a batch by N, so that one rate suits all lengths.

    Raises ShapeError. O(steps · N D) a task; Newton O(N D² + steps · D³). Rates that are too large diverge, as they do in the
    paper (whose code clamps gradients to ±20; this does not). Sources: Akyürek et al. 2023, section 4; Fu et al. 2023
    (arXiv 2310.17086) for the iteration as a reference learner.
    """

    def __init__(self, *, lr: float = 0.05, steps: int = 1, rule: Rule = "batch", ridge: float = 0.0, mean: bool = False) -> None:
        if rule not in ("batch", "one_pass", "newton") or not (lr > 0 and ridge >= 0) or steps < 0:
            raise ShapeError(
                f"Expected rule batch, one_pass or newton, lr > 0, ridge ≥ 0, steps ≥ 0; received {rule}, {lr}, {ridge}, {steps}."
            )
        self.lr, self.steps, self.rule, self.ridge, self.mean = lr, steps, rule, ridge, mean

    def weights(self, xs: Tensor, ys: Tensor) -> Tensor:
        """w of each task, [B, D]."""
        contexts.pairs(xs, ys)
        w = xs.new_zeros(xs.shape[0], xs.shape[2])
        if xs.shape[1] == 0:
            return w
        if self.rule == "newton":
            return self._newton(xs, ys)
        if self.rule == "one_pass":
            for x, y in zip(xs.unbind(1), ys.unbind(1), strict=True):
                w = w - 2 * self.lr * (x * ((w * x).sum(-1) - y).unsqueeze(-1) + self.ridge * w)
            return w
        for _ in range(self.steps):
            residual = (xs @ w.unsqueeze(-1)).squeeze(-1) - ys
            gradient = (xs.mT @ residual.unsqueeze(-1)).squeeze(-1) + self.ridge * w
            w = w - 2 * self.lr * (gradient / xs.shape[1] if self.mean else gradient)
        return w

    def predict(self, xs: Tensor, ys: Tensor, x_query: Tensor) -> Tensor:
        """⟨w, x⟩ of each query."""
        contexts.fitting(xs, ys, x_query)
        return (x_query * self.weights(xs, ys).unsqueeze(1)).sum(-1)

    def _newton(self, xs: Tensor, ys: Tensor) -> Tensor:
        S = xs.mT @ xs
        S.diagonal(dim1=1, dim2=2).add_(self.ridge)
        size = (S.abs().sum(-1).amax(-1) * S.abs().sum(-2).amax(-1)).clamp_min(1e-30)[:, None, None]
        W = S / size
        for _ in range(self.steps):
            W = 2 * W - W @ S @ W
        return (W @ (xs.mT @ ys.unsqueeze(-1))).squeeze(-1)
