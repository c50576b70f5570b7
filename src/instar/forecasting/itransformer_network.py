"""The inverted transformer as a module: a token is the whole context of one series."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from instar import catalogue
from instar.errors import ShapeError
from instar.forecasting.dropout import Dropout
from instar.forecasting.layers import Attention, EncoderLayer
from instar.forecasting.linear import InstanceNorm
from instar.interfaces import Mixer

Mixing = Literal["full", "none"] | str


class InvertedTransformer(nn.Module):
    r"""z_n = E x̃_n + b; z = layers(z); ŷ_n = σ_n (P · LN(z_n) + c) + μ_n, x̃_n the window of series n with mean 0 and deviation 1.

    Tokens are a set: there are no positions, and any number of series may come. Time marks and covariates are tokens beside the
    series and give no forecast; a covariate whose future is known adds F · future to its token (not in the paper, whose tokens
    end at the origin).

    Args:
        context: L. horizon: H. width: D. depth: layers. heads: of attention. hidden: of the FFN. dropout: of embedding, attention
            and FFN. norm: whether windows are normalised. attention: "full"; "none", the ablation in which series never meet; or
            the address of a mixer of the catalogue that reads both sides.
        known: for each covariate, whether its future is known.

    Shapes: x [B, L, N], marks [B, ≥ L, m], covariates [B, L + H, C], present bool [B, N] (absent series are read by no other) ->
    [B, H, N]. 2·N·L·D + depth·(8·N·D² + 4·N²·D + 4·N·D·hidden) + 2·N·D·H FLOPs. PyTorch's default initialisation, as the authors'
    code. Source: Liu et al. 2024 (arXiv 2310.06625). Raises ShapeError, UnknownNameError.
    """

    def __init__(
        self,
        context: int,
        horizon: int,
        *,
        width: int = 64,
        depth: int = 2,
        heads: int = 8,
        hidden: int = 64,
        dropout: float = 0.1,
        norm: bool = True,
        attention: Mixing = "full",
        known: tuple[bool, ...] = (),
    ) -> None:
        super().__init__()
        if min(context, horizon, width, depth, heads, hidden) < 1 or not 0 <= dropout < 1:
            raise ShapeError(
                "An inverted transformer expects positive sizes and 0 ≤ dropout < 1; received "
                f"context={context}, horizon={horizon}, width={width}, depth={depth}, heads={heads}, hidden={hidden}, "
                f"dropout={dropout}."
            )
        self.context, self.horizon, self.known = context, horizon, known
        self.norm = InstanceNorm("mean") if norm else None
        self.embedding = nn.Linear(context, width)
        self.future = nn.Linear(horizon, width, bias=False) if any(known) else None
        self.drop = Dropout(dropout)
        self.layers = nn.ModuleList(
            EncoderLayer(_mixing(attention, width, heads, dropout), width, hidden, dropout) for _ in range(depth)
        )
        self.last = nn.LayerNorm(width)
        self.head = nn.Linear(width, horizon)

    def forward(
        self, x: Tensor, *, marks: Tensor | None = None, covariates: Tensor | None = None, present: Tensor | None = None
    ) -> Tensor:
        z, back = self._tokens(x, marks, covariates)
        there = self._there(z, present)
        for layer in self.layers:
            z = layer(z, _mix(layer.attention, z, there))  # type: ignore[arg-type]
        return self._forecast(z, back, x.shape[2])

    def attentions(
        self, x: Tensor, *, marks: Tensor | None = None, covariates: Tensor | None = None, present: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """The forecast and, of each layer, how much each token reads of each other, [B, H, S, S] with S = N + m + C.

        Raises ShapeError where attention is not "full": the others weigh nothing.
        """
        z, back = self._tokens(x, marks, covariates)
        there = self._there(z, present)
        found = []
        for layer in self.layers:
            if not isinstance(layer.attention, Attention):
                raise ShapeError("Only attention='full' has weights to read.")
            mixed, weights = layer.attention.weighed(z, present=there)
            z = layer(z, mixed)
            found.append(weights)
        return self._forecast(z, back, x.shape[2]), found

    def _tokens(self, x: Tensor, marks: Tensor | None, covariates: Tensor | None) -> tuple[Tensor, Any]:
        if x.dim() != 3 or x.shape[1] != self.context:
            raise ShapeError(f"An inverted transformer of context {self.context} reads [B, L, N]; received {list(x.shape)}.")
        back = None
        if self.norm is not None:
            x, *back = self.norm(x)
        rows = [x] if marks is None else [x, marks[:, : self.context]]
        if covariates is None:
            return self.drop(self.embedding(torch.cat(rows, dim=2).mT)), back
        past = covariates[:, : self.context]
        past = past if self.norm is None else self.norm(past)[0]
        z = self.embedding(torch.cat([*rows, past], dim=2).mT)
        if self.future is not None:
            ahead = covariates[:, self.context :] * torch.tensor(self.known, device=x.device)
            z = torch.cat([z[:, : -len(self.known)], z[:, -len(self.known) :] + self.future(ahead.mT)], dim=1)
        return self.drop(z), back

    def _there(self, z: Tensor, present: Tensor | None) -> Tensor | None:
        """Covariates and marks are always there."""
        if present is None:
            return None
        return torch.cat([present, present.new_ones(len(z), z.shape[1] - present.shape[1])], dim=1)

    def _forecast(self, z: Tensor, back: Any, series: int) -> Tensor:
        y = self.head(self.last(z))[:, :series].mT
        return y if back is None else y * back[1] + back[0]


def _mixing(attention: Mixing, width: int, heads: int, dropout: float) -> nn.Module | None:
    if attention == "none":
        return None
    if attention == "full":
        return Attention(width, heads, dropout)
    card = catalogue.parse(attention).card
    if not card.capability("bidirectional"):
        raise ShapeError(f"Series have no order: attention takes a mixer tagged bidirectional; {attention} is none.")
    return catalogue.make(attention, Mixer, {"width": width, "heads": heads})  # type: ignore[type-abstract]


def _mix(mixing: nn.Module | None, z: Tensor, there: Tensor | None) -> Tensor | None:
    if mixing is None:
        return None
    return mixing(z, mask=there)[0] if isinstance(mixing, Mixer) else mixing(z, present=there)
