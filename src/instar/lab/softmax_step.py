"""One step of softmax regression from zero, in closed form."""

from __future__ import annotations

import torch
from torch import Tensor

from instar.errors import ShapeError
from instar.interfaces import InContextLearner
from instar.lab.icl import contexts


class SoftmaxStep(InContextLearner):
    r"""ŷ = n exp(⟨a, x₁⟩) / Σ_i exp(⟨a_i, x₁⟩) with x₁ = η/n · Aᵀ(b - 1/n): the step of softmax regression from x = 0, where
    f = 1/n.

    Labels are n b_i, of mean 1 over the document, so that they have the same size for all lengths; so are predictions.

    Args:
        rate: η / n, so that one rate suits all lengths. None: 1, and a problem tunes it on training tasks by `tuned`.

    Without examples 1. Raises ShapeError. O(n d) a task. Source: Li et al. 2023, section 5; the zero start is ours.
    """

    def __init__(self, *, rate: float | None = None) -> None:
        if rate is not None and not rate > 0:
            raise ShapeError(f"rate must be positive; received {rate}.")
        self.rate = 1.0 if rate is None else rate

    def predict(self, xs: Tensor, ys: Tensor, x_query: Tensor) -> Tensor:
        """The softmax over the document, read at the queries."""
        contexts.fitting(xs, ys, x_query)
        if xs.shape[1] == 0:
            return x_query.new_ones(x_query.shape[:2])
        n = xs.shape[1]
        x = self.rate * torch.einsum("bnd,bn->bd", xs, ys - 1) / n  # η/n Aᵀ(b - 1/n) with b = y/n
        scores, asked = torch.einsum("bnd,bd->bn", xs, x), torch.einsum("bqd,bd->bq", x_query, x)
        return n * (asked - scores.logsumexp(1, keepdim=True)).exp()

    @classmethod
    def tuned(cls, xs: Tensor, ys: Tensor, x_query: Tensor, labels: Tensor) -> SoftmaxStep:
        """The rate of the least squared error on these tasks: a grid by factors of √2, then a finer one. Give training tasks."""

        def error(exponent: float) -> float:
            return float((cls(rate=2**exponent).predict(xs, ys, x_query) - labels).square().mean())

        coarse = min((i / 2 for i in range(-12, 17)), key=error)
        return cls(rate=2 ** min((coarse + i / 16 for i in range(-8, 9)), key=error))
