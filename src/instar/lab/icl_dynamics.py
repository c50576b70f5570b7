"""One layer of linear self-attention as a learner in context, with weights in closed form, by gradient flow, or trained.

Zhang, Frei, Bartlett, "Trained Transformers Learn Linear Models In-Context", 2023 (arXiv 2306.09927; JMLR 25(49), 2024).
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
from instar.lab.icl import contexts, dynamics

Method = Literal["closed_form", "flow", "gradient"]


class LinearSelfAttention(nn.Module, InContextLearner):
    r"""ŷ = [E + W_PV E (Eᵀ W_KQ E)/M]_{d+1, M+1} with columns (x_i; y_i) and (x_q; 0) of E: no softmax, merged matrices.

    Only the last row of W_PV, (w₂₁ᵀ, w₂₂), and the first d columns of W_KQ reach the prediction. From the theorem's start
    the rest
    stays zero, and ŷ = w₂₂ · (1/M Σ y_i x_i)ᵀ U x_q with U the upper left block of W_KQ.

    Args:
        width: d. examples: N of training. method: `closed_form`, the limit of theorem 4.1; `flow`, gradient flow on the
            population loss from its start; `gradient`, all entries trained by `fit` on sampled tasks, from the same start. The
            first two stand as soon as they are built, and `fit` leaves them. covariance: Λ [d, d]; None is the identity.
            sigma: σ of the start. lr: of Adam in `fit`.

    Without examples 0. Errors are relative to E[y²] elsewhere. O(M d²) a query. Raises ShapeError.
    """

    def __init__(
        self,
        width: int,
        *,
        examples: int,
        method: Method = "closed_form",
        covariance: Tensor | None = None,
        sigma: float = 0.3,
        lr: float = 3e-3,
    ) -> None:
        super().__init__()
        if width < 1 or method not in ("closed_form", "flow", "gradient") or not (sigma > 0 and lr > 0):
            raise ShapeError(
                f"Expected width ≥ 1, a known method, sigma and lr > 0; received {width}, {method!r}, {sigma}, {lr}."
            )
        self.width, self.examples, self.method, self.lr = width, examples, method, lr
        covariance = torch.eye(width) if covariance is None else covariance
        if covariance.shape != (width, width):
            raise ShapeError(f"covariance must be [{width}, {width}]; received {list(covariance.shape)}.")
        self.register_buffer("covariance", dynamics.valid(covariance))
        generator = torch.Generator().manual_seed(int(torch.randint(2**31, ()).item()))
        if method == "closed_form":
            U, u = dynamics.optimum(covariance, examples)
        else:
            U, u = dynamics.start(width, sigma, generator)
            if method == "flow":
                U, u = dynamics.flow(U, u, covariance, examples)
        key_query, value = torch.zeros(width + 1, width + 1), torch.zeros(width + 1, width + 1)
        key_query[:width, :width], value[width, width] = U, u
        self.key_query, self.value = nn.Parameter(key_query), nn.Parameter(value)

    @classmethod
    def with_weights(cls, U: Tensor, u: float, *, examples: int) -> LinearSelfAttention:
        """A layer of given U [d, d] and u, such as those of random covariances."""
        layer = cls(len(U), examples=examples)
        with torch.no_grad():
            layer.key_query[:-1, :-1] = U
            layer.value[-1, -1] = u
        return layer

    def forward(self, xs: Tensor, ys: Tensor, x_query: Tensor) -> Tensor:
        """The whole layer: E [B · Q, M + 1, d + 1] in, the last entry of f(E) out."""
        contexts.fitting(xs, ys, x_query)
        (B, M, D), Q = xs.shape, x_query.shape[1]
        shown = torch.cat([xs, ys.unsqueeze(-1)], -1).unsqueeze(1).expand(B, Q, M, D + 1)
        asked = torch.cat([x_query, x_query.new_zeros(B, Q, 1)], -1).unsqueeze(2)
        E = torch.cat([shown, asked], 2)
        key_query, value = self.key_query.to(E.dtype), self.value.to(E.dtype)
        scores = E @ key_query @ asked.mT / max(1, M)  # Eᵀ W_KQ e_q; the normaliser is the test's M
        return (E + (E.mT @ scores).mT @ value.T)[..., -1, -1]

    def predict(self, xs: Tensor, ys: Tensor, x_query: Tensor) -> Tensor:
        """0 without examples; else the layer."""
        if xs.shape[1] == 0:
            contexts.fitting(xs, ys, x_query)
            return x_query.new_zeros(x_query.shape[:2])
        return self(xs, ys, x_query)

    def reduced(self, xs: Tensor, ys: Tensor, x_query: Tensor) -> Tensor:
        """u · (1/M Σ y_i x_i)ᵀ U x_q: the layer where all other entries are zero."""
        U, u = self.key_query[:-1, :-1].to(xs.dtype), self.value[-1, -1].to(xs.dtype)
        moment = (xs * ys.unsqueeze(-1)).mean(1)
        return u * torch.einsum("bd,de,bqe->bq", moment, U, x_query)

    def theory(self, shown: int, *, noise: float = 0.0) -> dynamics.Expected:
        """Test error with M = `shown` pairs at the limit of training, see `dynamics.expected`."""
        return dynamics.expected(self.covariance, self.examples, shown, noise=noise)  # type: ignore[arg-type]

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
        """`gradient`: Adam on the last pair of each task as the query, and on it alone, as in the paper."""
        if self.method != "gradient":
            return

        def last(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            xs, ys = batch
            return loss(model(xs[:, :-1], ys[:, :-1], xs[:, -1:]), ys[:, -1:])

        descend(
            self,
            torch.optim.Adam(self.parameters(), lr=self.lr),
            tasks,
            last,
            steps=steps,
            seed=seed,
            monitor=monitor,
            checkpoint=checkpoint,
        )
