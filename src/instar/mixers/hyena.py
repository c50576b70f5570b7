"""Hyena: long convolutions, whose filters a small network makes, between gates that depend on the data.

Poli, Massaroli, Nguyen, Fu, Dao, Baccus, Bengio, Ermon, Ré 2023, "Hyena Hierarchy: Towards Larger Convolutional Language Models"
(arXiv 2302.10866).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.errors import ShapeError
from instar.interfaces import Mixer
from instar.kernels.long_convolution import long_convolution
from instar.kernels.short_convolution import short_convolution

SLOWEST, FASTEST = math.log(100) / 1.5, math.log(100) / 0.3
"""δ of the window e^{-δ t}: it falls to 0.01 after one and a half horizons, and after three tenths of one."""
WIDTH = 3
"""Tokens of the short convolution."""


class HyenaState(NamedTuple):
    """What is kept between calls: it grows with every token, as a filter of any form needs all inputs."""

    past: Tensor
    """[B, 2, (N + 1) D]: the last inputs of the short convolution."""
    inputs: Tensor
    """[B, C, N - 1, D], float32 (float64 in a float64 module): inputs of each long convolution, the newest last."""


class ImplicitFilter(nn.Module):
    r"""h_l = e^{-δ l / L} ∘ W_3 s(W_2 s(W_1 s(W_0 φ(l)))),  s = sin(ω ∘ ·),  φ(l) = [t, cos(2π f_k l / L), -sin(2π f_k l / L)].

    t = l / (L - 1) is time in horizons of L tokens, f_k go from 1e-4 to bands - 1 in even steps, δ from SLOWEST to FASTEST over
    the channels. Nothing ends at L: later taps follow the same formula.
    """

    def __init__(self, channels: int, horizon: int, bands: int, width: int) -> None:
        super().__init__()
        self.channels, self.horizon, self.bands = channels, horizon, bands
        self.enter, self.leave = nn.Linear(1 + 2 * bands, width), nn.Linear(width, channels, bias=False)
        self.inner = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.frequency = nn.Parameter(torch.ones(width))

    def forward(self, length: int) -> Tensor:
        """Taps [length, channels], in float32 at least."""
        kind = torch.promote_types(self.frequency.dtype, torch.float32)
        place = torch.arange(length, device=self.frequency.device, dtype=kind).unsqueeze(1)
        time = place / (self.horizon - 1)
        bands = torch.linspace(1e-4, self.bands - 1, self.bands, device=place.device, dtype=kind)
        angle = 2 * math.pi / self.horizon * place * bands
        h = torch.cat([time, angle.cos(), -angle.sin()], dim=1)
        for layer in (self.enter, *self.inner):
            h = torch.sin(self.frequency.to(kind) * F.linear(h, layer.weight.to(kind), layer.bias.to(kind)))
        window = torch.exp(-time * torch.linspace(SLOWEST, FASTEST, self.channels, device=place.device, dtype=kind))
        return window * F.linear(h, self.leave.weight.to(kind))


class Hyena(Mixer):
    r"""v ← x^i ∘ v,  v ← h^i * v + b^i ∘ v  for i = N - 1, …, 1;  y = W_o (x^0 ∘ v).

    x^0, …, x^{N-1} and v are a projection of the input after a causal depthwise convolution of three tokens; * is a causal
    convolution as long as the sequence, with the taps of an `ImplicitFilter`.

    Args:
        width: D. heads: part of every mixer's signature; channels are independent, so it changes nothing.
        order: N ≥ 2, gates; there are N - 1 long convolutions. horizon: L ≥ 2, the tokens that are the unit of time of filters:
            the training length, as a rule. Longer inputs are read, with taps that were never trained.
        bands: pairs of sine and cosine that describe a place. filter_width: of the filters' network.

    Shapes: x [B, T, D] -> [B, T, D]; state `HyenaState`. Raises ShapeError. O(N T D (D + log T) + T F (F + N D)) time with F the
    filter's width, O(N T D) state; a token after T others costs O(T F (F + N D)), as its taps are made again.
    Differs from the authors' code: see the card.
    """

    def __init__(
        self, width: int, *, heads: int = 1, order: int = 2, horizon: int = 1024, bands: int = 4, filter_width: int = 64
    ) -> None:
        super().__init__()
        if min(width, heads, bands, filter_width) < 1 or min(order, horizon) < 2:
            raise ShapeError(
                "width, heads, bands and filter_width must be positive, order and horizon at least 2; received "
                f"{width}, {heads}, {bands}, {filter_width}, {order} and {horizon}."
            )
        self.width, self.heads, self.order, self.horizon = width, heads, order, horizon
        inner = (order + 1) * width
        self.in_proj, self.out_proj = nn.Linear(width, inner), nn.Linear(width, width)
        self.short = nn.Conv1d(inner, inner, WIDTH, groups=inner)
        self.filter = ImplicitFilter((order - 1) * width, horizon, bands, filter_width)
        self.skip = nn.Parameter(torch.randn(order - 1, width))

    def init_state(self, batch: int) -> HyenaState:
        """No inputs."""
        weight = self.in_proj.weight
        past = weight.new_zeros(batch, WIDTH - 1, len(weight))
        kind = torch.promote_types(weight.dtype, torch.float32)
        return HyenaState(past, weight.new_zeros(batch, 0, self.order - 1, self.width, dtype=kind))

    def forward(
        self, x: Tensor, state: HyenaState | None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, HyenaState]:
        """By Fourier transforms, one token by sums. See `Mixer.forward`."""
        B, T, _ = x.shape
        past, inputs = self.init_state(B) if state is None else state
        if T == 0:
            return x, HyenaState(past, inputs)
        if mask is not None:
            x = x.masked_fill(~mask.unsqueeze(-1), 0.0)  # whatever stands in the padding, even NaN, ends here
        u, past = short_convolution(self.in_proj(x), self.short.weight, past, mask=mask, reset=reset)
        kept = []
        with torch.autocast(x.device.type, enabled=False):
            *gates, v = (u + self._bias).to(inputs.dtype).chunk(self.order + 1, dim=-1)
            taps, skip = self._taps(inputs.shape[1] + T), self.skip.to(inputs.dtype)
            for n in range(self.order - 1):
                v = gates[-1 - n] * v
                y, read = long_convolution(v, taps[:, n], inputs[:, :, n], mask=mask, reset=reset)
                v = y + skip[n] * v
                kept.append(read)
            v = gates[0] * v
        return self.out_proj(v.to(self.out_proj.weight.dtype)), HyenaState(past, torch.stack(kept, dim=2))

    def reference(
        self, x: Tensor, state: HyenaState | None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, HyenaState]:
        """Token by token: each long convolution is a sum over all inputs so far."""
        B, T, D = x.shape
        past, inputs = self.init_state(B) if state is None else state
        x = x if mask is None else x.masked_fill(~mask.unsqueeze(-1), 0.0)
        taps, outputs = self._taps(inputs.shape[1] + T), [x.new_zeros(B, 0, D)]
        for t in range(T):
            if reset is not None:
                past = past.masked_fill(reset[:, t, None, None], 0.0)
                inputs = inputs.masked_fill(reset[:, t, None, None, None], 0.0)
            window = torch.cat([past, self.in_proj(x[:, t : t + 1])], dim=1)
            short = torch.einsum("bwc,cw->bc", window, self.short.weight[:, 0]) + self._bias
            *gates, v = short.to(inputs.dtype).chunk(self.order + 1, dim=-1)
            new = []
            for n in range(self.order - 1):
                v = gates[-1 - n] * v
                new.append(v)
                column = torch.cat([inputs[:, :, n], v.unsqueeze(1)], dim=1)
                v = (taps[: column.shape[1], n] * column.flip(1)).sum(1) + self.skip[n] * v
            outputs.append(self.out_proj((gates[0] * v).to(x.dtype)).unsqueeze(1))
            token = torch.stack(new, dim=1).unsqueeze(1)
            grown = torch.cat([inputs, token], dim=1)
            if mask is None:
                past, inputs = window[:, 1:], grown
            else:
                past = torch.where(mask[:, t, None, None], window[:, 1:], past)
                same = torch.cat([torch.zeros_like(token), inputs], dim=1)
                inputs = torch.where(mask[:, t, None, None, None], grown, same)
        return torch.cat(outputs, dim=1), HyenaState(past, inputs)

    @property
    def _bias(self) -> Tensor:
        assert self.short.bias is not None
        return self.short.bias

    def _taps(self, length: int) -> Tensor:
        """[length, N - 1, D]"""
        return self.filter(length).unflatten(-1, (self.order - 1, self.width))
