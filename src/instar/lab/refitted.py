"""Ordinary classifiers that are fitted anew to the examples of every context: what a learner in context has to beat.

Inputs and labels are read as numbers; labels by their signs. Source of the choice: Bhattamishra et al. 2024 (arXiv 2310.03016).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from instar.bench.seeds import stream
from instar.errors import ShapeError
from instar.interfaces import InContextLearner
from instar.lab.icl import contexts

_AT_ONCE = 2**22
"""Numbers of hidden units that a small network holds at once."""


class Perceptron(InContextLearner):
    r"""w ← w + y_i x̃_i for each example with y_i ⟨w, x̃_i⟩ ≤ 0, x̃ = [x, 1], in order, for `passes` passes from w = 0.

    Args: passes: over the examples; tasks whose examples are all answered stay as they are.

    xs [B, N, D], ys [B, N], x_query [B, Q, D] -> ⟨w, x̃⟩ [B, Q]. Raises ShapeError. O(passes N D). Source: Rosenblatt 1958.
    """

    def __init__(self, *, passes: int = 10) -> None:
        if passes < 1:
            raise ShapeError(f"A perceptron expects passes ≥ 1; received {passes}.")
        self.passes = passes

    def predict(self, xs: Tensor, ys: Tensor, x_query: Tensor) -> Tensor:
        """The sum whose sign is the class."""
        contexts.fitting(xs, ys, x_query)
        shown, signs = F.pad(xs, (0, 1), value=1.0), _signs(ys)
        w = torch.zeros_like(shown[:, :1]).sum(1)
        for _ in range(self.passes):
            before = w
            for i in range(xs.shape[1]):
                wrong = signs[:, i] * (w * shown[:, i]).sum(-1) <= 0
                w = w + (wrong * signs[:, i]).unsqueeze(-1) * shown[:, i]
            if torch.equal(w, before):
                break
        return torch.einsum("bqd,bd->bq", F.pad(x_query, (0, 1), value=1.0), w)


class LogisticRegression(InContextLearner):
    r"""argmin_{w, b} Σ_i log(1 + e^{−y_i (⟨w, x_i⟩ + b)}) + ‖w‖² / 2C, by Newton's method; the answer is ⟨w, x⟩ + b.

    Args: c: C, as scikit-learn names it; b is not penalised. iterations: of Newton's method at most, each halved until the loss
    falls. Of examples of one class b grows without end; it stops where the gradient is below 10⁻⁸, or after the iterations.

    xs [B, N, D], ys [B, N], x_query [B, Q, D] -> [B, Q]. In float64. Raises ShapeError. O(iterations (N D² + D³)).
    """

    def __init__(self, *, c: float = 1.0, iterations: int = 30) -> None:
        if not c > 0 or iterations < 1:
            raise ShapeError(f"Logistic regression expects C > 0 and iterations ≥ 1; received {c} and {iterations}.")
        self.c, self.iterations = c, iterations

    def predict(self, xs: Tensor, ys: Tensor, x_query: Tensor) -> Tensor:
        """The log-odds."""
        contexts.fitting(xs, ys, x_query)
        shown, signs = F.pad(xs.double(), (0, 1), value=1.0), _signs(ys).double()
        penalty = shown.new_full((shown.shape[-1],), 1 / self.c)
        penalty[-1] = 0.0
        w = shown.new_zeros(len(xs), len(penalty))
        ridge = torch.diag(penalty + 1e-10)  # of one class alone the curvature along b vanishes

        def loss(w: Tensor) -> Tensor:
            margins = signs * torch.einsum("bnd,bd->bn", shown, w)
            return F.softplus(-margins).sum(1) + 0.5 * (penalty * w * w).sum(1)

        for _ in range(self.iterations):
            margins = signs * torch.einsum("bnd,bd->bn", shown, w)
            wrong = torch.sigmoid(-margins)
            gradient = penalty * w - torch.einsum("bnd,bn->bd", shown, signs * wrong)
            if float(gradient.abs().max()) < 1e-8:
                break
            curvature = torch.einsum("bnd,bn,bne->bde", shown, wrong * (1 - wrong), shown) + ridge
            step = torch.linalg.solve(curvature, gradient)
            share, here = torch.ones_like(w[:, 0]), loss(w)
            for _ in range(30):
                worse = loss(w - share.unsqueeze(1) * step) > here
                if not bool(worse.any()):
                    break
                share = torch.where(worse, share / 2, share)
            w = w - share.unsqueeze(1) * step
        return torch.einsum("bqd,bd->bq", F.pad(x_query.double(), (0, 1), value=1.0), w).to(xs.dtype)


class SmallNetwork(InContextLearner):
    r"""ŷ = ⟨v, relu(W x + b)⟩ + c, trained by Adam on the logistic loss of the examples, from the same beginning each time.

    Args: hidden: units. steps, lr: of Adam over all examples at once. seed: of the beginning, U(±1/√fan-in).

    xs [B, N, D], ys [B, N], x_query [B, Q, D] -> [B, Q]; without examples 0. Raises ShapeError. O(steps N D hidden) a task.
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
        parts = zip(xs.split(size), _signs(ys).split(size), x_query.split(size), strict=True)
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


def _signs(ys: Tensor) -> Tensor:
    return torch.where(ys > 0, 1.0, -1.0).to(ys.dtype)
