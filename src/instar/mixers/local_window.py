"""Causal attention over the last tokens only: the control of every method that claims to see far.

Child et al. 2019 (Sparse Transformer, arXiv 1904.10509), Beltagy et al. 2020 (Longformer, 2004.05150); the `local` row of Long
Range Arena (Tay et al. 2020, 2011.04006).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from instar.errors import ShapeError
from instar.kernels.window_attention import window_attention
from instar.mixers.positions import count_positions, rotate
from instar.mixers.projecting import Projecting


class LocalWindowState(NamedTuple):
    """The last w − 1 real tokens: its size does not grow."""

    keys: Tensor
    """[B, H, w − 1, K], before rotation; the newest stands last."""
    values: Tensor
    """[B, H, w − 1, K]"""
    filled: Tensor
    """int64 [B]: how many of the last columns belong to the present sequence."""
    position: Tensor
    """int64 [B]: real tokens since the last reset."""


class LocalWindow(Projecting):
    r"""o_t = Σ_{t−w<i≤t} softmax_i(⟨R_t q_t, R_i k_i⟩ / √K) v_i: causal softmax attention over the last w real tokens.

    Args:
        width: D, a multiple of heads. heads: H, each of width K = D / H (even with rope).
        window: w ≥ 2 tokens that a query sees, its own among them. L layers see back L (w − 1) tokens.
        rope, rope_base: rotate queries and keys, as in `Softmax`. bias: biases of the four projections.

    Shapes: x [B, T, D] -> [B, T, D]; state `LocalWindowState`. Raises ShapeError. O(T (D² + w D)) time, O(w D) state. With
    w ≥ T it is `Softmax`, whose weights load. Differs from the papers: no dilation; rotary instead of learned positions.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int = 4,
        window: int = 64,
        rope: bool = True,
        rope_base: float = 10000.0,
        bias: bool = False,
    ) -> None:
        super().__init__(width, heads, bias)
        if window < 2:
            raise ShapeError(f"window must be at least 2 (the token itself and one before it); received {window}.")
        if rope and self.head_width % 2:
            raise ShapeError(f"RoPE turns pairs: the head width must be even; received {width}/{heads} = {self.head_width}.")
        if not 0 < rope_base < math.inf:
            raise ShapeError(f"rope_base must be positive; received {rope_base}.")
        self.window, self.rope, self.rope_base = window, rope, rope_base

    def init_state(self, batch: int) -> LocalWindowState:
        """No column filled."""
        weight = self.k_proj.weight
        empty = weight.new_zeros(batch, self.heads, self.window - 1, self.head_width)
        filled, position = torch.zeros(2, batch, dtype=torch.int64, device=weight.device).unbind()
        return LocalWindowState(empty, empty.clone(), filled.clone(), position.clone())

    def forward(
        self, x: Tensor, state: LocalWindowState | None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, LocalWindowState]:
        """Real tokens are made neighbours, then attend in blocks. See `Mixer.forward`."""
        B, T, _ = x.shape
        state = self.init_state(B) if state is None else state
        if T == 0:
            return self.o_proj(x), state
        if mask is not None:
            x = x.masked_fill(~mask.unsqueeze(-1), 0.0)  # whatever stands in the padding, even NaN, ends here
        where, position = count_positions(state.position, T, mask, reset)
        past = self.window - 1
        q, k, v = self.project(x)
        segment = x.new_zeros(B, T, dtype=torch.int64) if reset is None else reset.to(torch.int64).cumsum(1)
        # Places count from the first column that is kept: angles stay small however long the stream.
        place = torch.where(segment == 0, where - state.position.unsqueeze(1) + past, where)
        last, order = segment[:, -1:], None
        if mask is not None:
            order = torch.argsort((~mask).to(torch.uint8), dim=1, stable=True)
            segment, place = segment.masked_fill(~mask, -1).gather(1, order), place.gather(1, order)
            q, k, v = (part.gather(2, _like(order, part)) for part in (q, k, v))
        old = torch.where(torch.arange(past, device=x.device) >= past - state.filled.unsqueeze(1), 0, -1)
        keys, values = (torch.cat([a.to(b.dtype), b], dim=2) for a, b in ((state.keys, k), (state.values, v)))
        sequence = torch.cat([old, segment], dim=1)
        columns = torch.cat([torch.arange(past, device=x.device).expand(B, -1), place], dim=1)
        y = window_attention(self._turned(q, place), self._turned(keys, columns), values, sequence, before=past)
        if order is None or mask is None:
            kept = keys[:, :, T:].clone(), values[:, :, T:].clone()
            ends = sequence[:, T:]
        else:
            y = torch.zeros_like(y).scatter(2, _like(order, y), y)
            newest = mask.sum(1, keepdim=True) + torch.arange(past, device=x.device)
            kept = keys.gather(2, _like(newest, keys)), values.gather(2, _like(newest, values))
            ends = sequence.gather(1, newest)
        return self.leave(y), LocalWindowState(*kept, (ends == last).sum(1), position)

    def reference(
        self, x: Tensor, state: LocalWindowState | None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, LocalWindowState]:
        """Token by token: drop the oldest column, append the new one, attend to what is left."""
        B, T, _ = x.shape
        keys, values, filled, position = self.init_state(B) if state is None else state
        real = x.new_ones(B, T, dtype=torch.bool) if mask is None else mask
        x = x.masked_fill(~real.unsqueeze(-1), 0.0)
        outputs = [x.new_zeros(B, self.heads, 0, self.head_width)]
        for t in range(T):
            if reset is not None:
                filled, position = filled.masked_fill(reset[:, t], 0), position.masked_fill(reset[:, t], 0)
            q, k, v = self.project(x[:, t : t + 1])
            window, read = torch.cat([keys, k], dim=2), torch.cat([values, v], dim=2)
            place = torch.arange(self.window, device=x.device)
            seen = place >= self.window - 1 - filled.unsqueeze(1)
            turned = self._turned(q, place[None, -1:]), self._turned(window, place[None])
            score = (turned[0] @ turned[1].mT * self.head_width**-0.5).masked_fill(~seen[:, None, None], -torch.inf)
            outputs.append(torch.softmax(score, dim=-1) @ read)
            keep = real[:, t]
            keys = torch.where(keep[:, None, None, None], window[:, :, 1:], keys)
            values = torch.where(keep[:, None, None, None], read[:, :, 1:], values)
            filled, position = torch.where(keep, (filled + 1).clamp(max=self.window - 1), filled), position + keep
        return self.leave(torch.cat(outputs, dim=2)), LocalWindowState(keys, values, filled, position)

    def _turned(self, x: Tensor, place: Tensor) -> Tensor:
        """Queries or keys [B, H, T, K] rotated by their places [B or 1, T]."""
        return rotate((x,), place, self.rope_base)[0] if self.rope else x


def _like(index: Tensor, x: Tensor) -> Tensor:
    """Column indices [B, C] for x [B, H, ·, K]."""
    return index[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3])
