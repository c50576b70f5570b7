"""The point-wise transformer of the forecasting literature as a module: a token is the values of all series at one time."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.forecasting.dropout import Dropout
from instar.forecasting.layers import Attention, EncoderLayer
from instar.mixers.positions import sinusoid


class PointEmbedding(nn.Module):
    """A circular convolution over three rows of all series, plus sinusoids (where `positions`), plus a linear map of time marks.

    x [B, T, N], marks [B, T, m], or None where m is 0 -> [B, T, D]. The convolution starts as the authors' (He et al. 2015, fan
    in, leaky ReLU).
    """

    def __init__(self, series: int, width: int, dropout: float, *, positions: bool, marks: int) -> None:
        super().__init__()
        self.values = nn.Conv1d(series, width, 3, padding=1, padding_mode="circular", bias=False)
        nn.init.kaiming_normal_(self.values.weight, mode="fan_in", nonlinearity="leaky_relu")
        self.marks = nn.Linear(marks, width, bias=False) if marks else None
        self.width, self.positions, self.drop = width, positions, Dropout(dropout)

    def forward(self, x: Tensor, marks: Tensor | None) -> Tensor:
        z = self.values(x.mT).mT
        if self.positions:
            z = z + sinusoid(torch.arange(x.shape[1], device=x.device), self.width)
        return self.drop(z if self.marks is None else z + self.marks(marks))


class DecoderLayer(nn.Module):
    """z ← LN(z + own(z)), own = causal attention; z ← LN(z + attention(z, memory)); z ← LN(z + FFN(z))."""

    def __init__(self, own: nn.Module, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.own = own
        self.norm, self.drop = nn.LayerNorm(width), Dropout(dropout)
        self.rest = EncoderLayer(Attention(width, heads, dropout), width, hidden, dropout)

    def forward(self, z: Tensor, memory: Tensor) -> Tensor:
        z = self.norm(z + self.drop(self.own(z)))
        return self.rest(z, self.rest.attention(z, memory))  # type: ignore[misc]


class PointTransformer(nn.Module):
    r"""ŷ = W LN(decoder([last ℓ rows, H rows of zeros], encoder(x))) + c, in one pass.

    Args:
        series: N, fixed. context: L. horizon: H. width: D. depth: layers of the encoder; the decoder has one. heads, hidden,
            dropout: of all layers. marks: m, how many describe a time. label: ℓ, known rows that the decoder begins with; half
            the context by default. attention: makes what tokens of one sequence read each other by, as `Attention(width, heads,
            dropout, causal=…)`; the decoder reads the encoder by full attention. between: makes what stands between two layers of
            the encoder, for a width.

    Shapes: x [B, L, N], marks [B, L + H, m] or None -> [B, H, N]. Source: Vaswani et al. 2017 in the form of Informer (Zhou et
    al. 2021, arXiv 2012.07436) and the Time-Series-Library, with full attention. Raises ShapeError.
    """

    def __init__(
        self,
        series: int,
        context: int,
        horizon: int,
        *,
        width: int = 64,
        depth: int = 2,
        heads: int = 4,
        hidden: int = 128,
        dropout: float = 0.1,
        marks: int = 0,
        label: int | None = None,
        attention: Callable[..., nn.Module] = Attention,
        between: Callable[[int], nn.Module] = nn.Identity,
    ) -> None:
        super().__init__()
        self.context, self.horizon, self.label = context, horizon, context // 2 if label is None else label
        self.enter, self.ask = (PointEmbedding(series, width, dropout, positions=True, marks=marks) for _ in range(2))
        self.layers = nn.ModuleList(EncoderLayer(attention(width, heads, dropout), width, hidden, dropout) for _ in range(depth))
        self.between = nn.ModuleList(between(width) for _ in range(depth - 1))
        self.encoded, self.decoded = nn.LayerNorm(width), nn.LayerNorm(width)
        self.decoder = DecoderLayer(attention(width, heads, dropout, causal=True), width, heads, hidden, dropout)
        self.head = nn.Linear(width, series)

    def forward(self, x: Tensor, *, marks: Tensor | None = None) -> Tensor:
        z = self.enter(x, None if marks is None else marks[:, : self.context])
        for place, layer in enumerate(self.layers):
            z = self.between[place - 1](z) if place else z
            z = layer(z, layer.attention(z))  # type: ignore[operator]
        asked = F.pad(x[:, self.context - self.label :], (0, 0, 0, self.horizon))
        y = self.decoder(self.ask(asked, None if marks is None else marks[:, self.context - self.label :]), self.encoded(z))
        return self.head(self.decoded(y))[:, -self.horizon :]
