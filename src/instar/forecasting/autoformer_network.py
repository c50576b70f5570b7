"""Autoformer as a module: series decomposed layer by layer, and sums over lagged copies of themselves in place of attention."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.errors import ShapeError
from instar.forecasting.dropout import Dropout
from instar.forecasting.linear import MovingAverage
from instar.forecasting.transformer_network import PointEmbedding


class AutoCorrelation(nn.Module):
    r"""y = Σ_i softmax(R(τ_i)) · roll(V, −τ_i) over the k = ⌊c ln T⌋ lags of largest R(τ) = Σ_t Q_t K_{t−τ}, by FFT.

    R is the mean over heads and widths. In training the lags are those of the batch's mean, in use each sample has its own, as in
    the authors' code.

    Args:
        width: D. heads: H. factor: c.

    Shapes: x [B, T, D], memory [B, S, D], cut or filled up with zeros to T -> [B, T, D]. 4·T·D² multiply-adds and T log T.
    Source: Wu et al. 2021 (arXiv 2106.13008). Raises ShapeError.
    """

    def __init__(self, width: int, heads: int, factor: float = 1.0) -> None:
        super().__init__()
        if width % heads or not factor > 0:
            raise ShapeError(f"The heads divide the width and the factor is positive; received {width}, {heads}, {factor}.")
        self.heads, self.factor = heads, factor
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        T, memory = x.shape[1], x if memory is None else memory
        q, k, v = self.query(x), _fitted(self.key(memory), T), _fitted(self.value(memory), T)
        found = correlation(q, k).mean(-1)  # [B, T]
        count = max(1, int(self.factor * math.log(T)))
        if not self.training:
            lags = found.topk(count, dim=1).indices
            return self.out(rolled(v, lags, found.gather(1, lags).softmax(1)))
        lags = found.mean(0).topk(count).indices
        weights = found[:, lags].softmax(1)
        shared = [weight[:, None, None] * v.roll(-lag, 1) for lag, weight in zip(lags.tolist(), weights.unbind(1), strict=True)]
        return self.out(torch.stack(shared).sum(0))


def correlation(q: Tensor, k: Tensor) -> Tensor:
    """R(τ) = Σ_t q_t k_{t−τ} around the circle, for each width: [B, T, D]."""
    product = torch.fft.rfft(q, dim=1) * torch.fft.rfft(k, dim=1).conj()
    return torch.fft.irfft(product, n=q.shape[1], dim=1)


def rolled(v: Tensor, lags: Tensor, weights: Tensor) -> Tensor:
    """Σ_i w_i v_{t+τ_i} around the circle; lags and weights [B, k]."""
    T = v.shape[1]
    place = (torch.arange(T, device=v.device)[None, :, None] + lags[:, None]) % T  # [B, T, k]
    copies = v.gather(1, place.flatten(1)[..., None].expand(-1, -1, v.shape[2])).unflatten(1, (T, -1))
    return (copies * weights[:, None, :, None]).sum(2)


class SeasonalNorm(nn.Module):
    """LayerNorm less its mean over time, so that what is left has no level."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, z: Tensor) -> Tensor:
        z = self.norm(z)
        return z - z.mean(1, keepdim=True)


class Feed(nn.Module):
    """Linear, GELU, linear, without biases."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.rise, self.fall = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, width, bias=False)
        self.drop = Dropout(dropout)

    def forward(self, z: Tensor) -> Tensor:
        return self.drop(self.fall(self.drop(F.gelu(self.rise(z)))))


class DecompositionLayer(nn.Module):
    """z ← z − trend(z) after auto-correlation (with itself, then with a memory where there is one) and after the feed.

    Gives back what is left and the sum of the trends. Source: Wu et al. 2021.
    """

    def __init__(self, width: int, heads: int, hidden: int, dropout: float, kernel: int, factor: float, *, reads: bool) -> None:
        super().__init__()
        self.own = AutoCorrelation(width, heads, factor)
        self.other = AutoCorrelation(width, heads, factor) if reads else None
        self.feed, self.average, self.drop = Feed(width, hidden, dropout), MovingAverage(kernel), Dropout(dropout)

    def forward(self, z: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor]:
        total = torch.zeros_like(z)
        for step in ("own", "other", "feed"):
            if step == "feed":
                z = z + self.feed(z)
            elif step == "own":
                z = z + self.drop(self.own(z))
            elif self.other is not None:
                z = z + self.drop(self.other(z, memory))
            else:
                continue
            trend = self.average(z)
            z, total = z - trend, total + trend
        return z, total


class AutoformerNetwork(nn.Module):
    r"""ŷ = trend + W · norm(seasonal) + c, both from a decoder that begins with the last ℓ rows, decomposed, and H more.

    Those H rows are the window's mean in the trend and zeros in the seasonal part; each decoder layer adds a circular convolution
    of its trends to the trend. No positions.

    Args:
        series: N, fixed. context: L. horizon: H. width: D. depth: layers of the encoder; the decoder has one. heads, hidden,
            dropout, kernel, factor: of the layers. marks: m, how many describe a time.

    Shapes: x [B, L, N], marks [B, L + H, m] or None -> [B, H, N]. Source: Wu et al. 2021 (arXiv 2106.13008). Raises ShapeError.
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
        kernel: int = 25,
        factor: float = 1.0,
        marks: int = 0,
    ) -> None:
        super().__init__()
        self.context, self.horizon, self.label = context, horizon, context // 2
        sizes = (width, heads, hidden, dropout, kernel, factor)
        self.average = MovingAverage(kernel)
        self.enter, self.ask = (PointEmbedding(series, width, dropout, positions=False, marks=marks) for _ in range(2))
        self.layers = nn.ModuleList(DecompositionLayer(*sizes, reads=False) for _ in range(depth))
        self.decoder = DecompositionLayer(*sizes, reads=True)
        self.encoded, self.decoded = SeasonalNorm(width), SeasonalNorm(width)
        self.trend = nn.Conv1d(width, series, 3, padding=1, padding_mode="circular", bias=False)
        self.head = nn.Linear(width, series)

    def forward(self, x: Tensor, *, marks: Tensor | None = None) -> Tensor:
        z = self.enter(x, None if marks is None else marks[:, : self.context])
        for layer in self.layers:
            z, _ = layer(z)
        average = self.average(x)
        start = self.context - self.label
        trend = torch.cat([average[:, start:], x.mean(1, keepdim=True).expand(-1, self.horizon, -1)], dim=1)
        seasonal = F.pad((x - average)[:, start:], (0, 0, 0, self.horizon))
        asked = self.ask(seasonal, None if marks is None else marks[:, start:])
        z, more = self.decoder(asked, self.encoded(z))
        return (trend + self.trend(more.mT).mT + self.head(self.decoded(z)))[:, -self.horizon :]


def _fitted(x: Tensor, T: int) -> Tensor:
    """The first T rows, zeros where there are fewer."""
    return F.pad(x, (0, 0, 0, max(0, T - x.shape[1])))[:, :T]
