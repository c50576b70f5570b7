"""A network of two layers, trained anew on the examples of every context: a learner in context has to beat it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from instar.bench.seeds import stream
from instar.errors import ShapeError
from instar.interfaces import InContextLearner
from instar.lab.icl import contexts

_AT_ONCE = 2**22
"""Numbers of hidden units that are held at once."""


class SmallNetwork(InContextLearner):
    r"""ŷ = ⟨v, relu(W x + b)⟩ + c, trained by Adam on the logistic loss of the examples, from the same beginning each time.

    Args: hidden: units. steps, lr: of Adam over all examples at once. seed: of the beginning, U(±1/√fan-in).

    xs [B, N, D], ys [B, N], x_query [B, Q, D] -> [B, Q]; without examples 0. Raises ShapeError. O(steps N D hidden) a task.
    Bhattamishra et al. 2024 (arXiv 2310.03016) compare with it.
    """

    def __init__(self, *, hidden: int = 100, steps: int = 100, lr: float = 5e-3, seed: int = 0) -> None:
        if hidden < 1 or steps < 1 or not lr > 0:
            raise ShapeError(f"A small network expects hidden and steps ≥ 1 and lr > 0; received {hidden}, {steps} and {lr}.")
        self.hidden, self.steps, self.lr, self.seed = hidden, steps, lr, seed

    def predict(self, xs: Tensor, ys: Tensor, x_query: Tensor) -> Tensor:
        """The log-odds."""
        contexts.fitting(xs, ys, x_query)
        if xs.shape[1] == 0:
            return x_query.new_zeros(x_query.shape[:2])
        size = max(1, _AT_ONCE // (self.hidden * (xs.shape[1] + x_query.shape[1])))
        parts = zip(xs.split(size), contexts.signs(ys).split(size), x_query.split(size), strict=True)
        return torch.cat([self._answer(*part) for part in parts])

    def _answer(self, xs: Tensor, signs: Tensor, asked: Tensor) -> Tensor:
        D, H = xs.shape[-1], self.hidden
        generator = stream(self.seed, "small_network")
        sizes = [(D, H, D), (1, H, D), (H, 1, H), (1, 1, H)]
        begin = [(2 * torch.rand(rows, columns, generator=generator) - 1) / fan**0.5 for rows, columns, fan in sizes]
        with torch.enable_grad():  # a problem asks without gradients
            weights = [w.to(xs).expand(len(xs), -1, -1).clone().requires_grad_() for w in begin]
            optimiser = torch.optim.Adam(weights, lr=self.lr)
            for _ in range(self.steps):
                optimiser.zero_grad()
                F.softplus(-signs * _two_layers(xs, weights)).mean(1).sum().backward()  # each task has its own weights
                optimiser.step()
        return _two_layers(asked, weights).detach()


def _two_layers(x: Tensor, weights: list[Tensor]) -> Tensor:
    into, inner, out, outer = weights
    return (torch.relu(x @ into + inner) @ out + outer).squeeze(-1)
