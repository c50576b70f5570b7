"""One layer of attention trained on softmax regression: is it a step of gradient descent?

Li, Song, Xia, Yu, Zhou, "The Closeness of In-Context Learning and Weight Shifting for Softmax Regression", 2023 (arXiv
2304.13276).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from instar.bench.fit import descend
from instar.errors import ShapeError
from instar.interfaces import InContextLearner, Monitor
from instar.lab.icl import contexts


class InContextSoftmax(nn.Module, InContextLearner):
    r"""Tokens e_i = (a_i; y_i), the query (a; 0): e ← e + P V softmax(Kᵀ Q e), and the last entry of the result is ŷ.

    Labels are n b_i (mean 1 over a document), as of `SoftmaxStep`.

    Args:
        width: d. kernel: `softmax`, or `linear`, the same layer with scores / n in the place of the softmax. normalise: read out
            n exp(ŷ - 1) / Σ_i exp(ŷ_i - 1), with the document's own rows as queries, as softmax regression does; without it
            ŷ + 1.
        lr: of Adam in `fit`.

    Matrices start at N(0, 1/(d+1)) / 2. Without examples 1. Raises ShapeError. O(n d) a query; with `normalise` O(n² d) a
    document.
    Differs from the paper, which gives no read-out: that of softmax regression, so that both models' sensitivities compare.
    """

    def __init__(
        self, width: int, *, kernel: Literal["softmax", "linear"] = "softmax", normalise: bool = True, lr: float = 3e-3
    ) -> None:
        super().__init__()
        if width < 1 or kernel not in ("softmax", "linear") or not lr > 0:
            raise ShapeError(f"Expected width ≥ 1, kernel softmax or linear and lr > 0; received {width}, {kernel!r}, {lr}.")
        self.width, self.kernel, self.normalise, self.lr = width, kernel, normalise, lr
        size = width + 1
        self.query, self.key, self.value, self.projection = (
            nn.Parameter(torch.randn(size, size) / (2 * size**0.5)) for _ in range(4)
        )

    def attend(self, xs: Tensor, ys: Tensor, x_query: Tensor) -> Tensor:
        """The last entry of the queries' tokens after the layer, [B, Q]; labels enter less their mean of 1."""
        q, k, v, p = (w.to(xs.dtype) for w in (self.query, self.key, self.value, self.projection))
        shown = torch.cat([xs, ys.unsqueeze(-1) - 1], -1)
        asked = torch.cat([x_query, x_query.new_zeros(*x_query.shape[:2], 1)], -1)
        scores = (asked @ q) @ (shown @ k).mT
        weights = scores.softmax(-1) if self.kernel == "softmax" else scores / xs.shape[1]
        return (weights @ shown @ v @ p)[..., -1]

    def forward(self, xs: Tensor, ys: Tensor, x_query: Tensor) -> Tensor:
        """xs [B, n, d], ys [B, n], x_query [B, Q, d] -> [B, Q]."""
        contexts.fitting(xs, ys, x_query)
        if xs.shape[1] == 0:
            return x_query.new_ones(x_query.shape[:2])
        asked = self.attend(xs, ys, x_query)
        if not self.normalise:
            return 1 + asked
        return xs.shape[1] * (asked - self.attend(xs, ys, xs).logsumexp(1, keepdim=True)).exp()

    def predict(self, xs: Tensor, ys: Tensor, x_query: Tensor) -> Tensor:
        """The layer."""
        return self(xs, ys, x_query)

    def fit(
        self,
        tasks: Callable[[int], tuple[Tensor, Tensor]],
        loss: Callable[[Tensor, Tensor], Tensor],
        *,
        steps: int,
        seed: int = 0,
        monitor: Monitor | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        """Adam; the rows of each document are the queries."""
        descend(
            self,
            torch.optim.Adam(self.parameters(), lr=self.lr),
            tasks,
            lambda model, batch: loss(model(*batch, batch[0]), batch[1]),
            steps=steps,
            seed=seed,
            monitor=monitor,
            checkpoint=checkpoint,
        )
