"""Logistic regression, fitted anew to the examples of every context: a learner in context has to beat it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from instar.errors import ShapeError
from instar.interfaces import InContextLearner
from instar.lab.icl import contexts


class LogisticRegression(InContextLearner):
    r"""argmin_{w, b} Σ_i log(1 + e^{−y_i (⟨w, x_i⟩ + b)}) + ‖w‖² / 2C, by Newton's method; the answer is ⟨w, x⟩ + b.

    Args: c: C, as scikit-learn names it; b is not penalised. iterations: of Newton's method at most, each halved until the loss
    falls. Of examples of one class b grows without end; it stops where the gradient is below 10⁻⁸, or after the iterations.

    xs [B, N, D], ys [B, N], x_query [B, Q, D] -> [B, Q]. In float64. Raises ShapeError. O(iterations (N D² + D³)).
    Bhattamishra et al. 2024 (arXiv 2310.03016) compare with it.
    """

    def __init__(self, *, c: float = 1.0, iterations: int = 30) -> None:
        if not c > 0 or iterations < 1:
            raise ShapeError(f"Logistic regression expects C > 0 and iterations ≥ 1; received {c} and {iterations}.")
        self.c, self.iterations = c, iterations

    def predict(self, xs: Tensor, ys: Tensor, x_query: Tensor) -> Tensor:
        """The log-odds."""
        contexts.fitting(xs, ys, x_query)
        shown, signs = F.pad(xs.double(), (0, 1), value=1.0), contexts.signs(ys).double()
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
