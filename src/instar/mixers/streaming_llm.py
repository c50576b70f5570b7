"""Window attention that keeps the first tokens: a trained decoder goes on for ever in a fixed memory.

Xiao, Tian, Chen, Han, Lewis 2023, "Efficient Streaming Language Models with Attention Sinks" (arXiv 2309.17453).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from instar.errors import ShapeError
from instar.mixers.positions import count_positions, rotate
from instar.mixers.projecting import Projecting


class StreamingLLMState(NamedTuple):
    """The first s tokens of the present sequence and its last w − 1, before rotation: its size does not grow."""

    sink_keys: Tensor
    """[B, H, s, K]; those that have not come yet are meaningless, and so are their values."""
    sink_values: Tensor
    """[B, H, s, K]"""
    keys: Tensor
    """[B, H, w − 1, K]; the newest stands last."""
    values: Tensor
    """[B, H, w − 1, K]"""
    at: Tensor
    """int64 [B, w − 1]: positions of these, −1 where there is none."""
    position: Tensor
    """int64 [B]: real tokens since the last reset."""


class StreamingLLM(Projecting):
    r"""o_t = Σ_{i ∈ C_t} softmax_i(⟨R_{p(t)} q_t, R_{p(i)} k_i⟩ / √K) v_i over a cache C_t: the first s tokens and the last w.

    p is the place in the cache, not in the text: the tokens of the window are as far away as they are, and sink i stays
    s + w − 1 − i away however long the stream. Up to s + w tokens it is softmax attention.

    Args:
        width: D, a multiple of heads. heads: H, each of width K = D / H, even.
        sinks: s ≥ 0; without them it is `LocalWindow`. window: w ≥ 2 tokens that a query sees, its own among them.
        rope_base: as of `Softmax`. bias: biases of the four projections.

    Shapes: x [B, T, D] -> [B, T, D]; state `StreamingLLMState`. Raises ShapeError. O(T (D² + (s + w) D)) time, O((s + w) D)
    state. Differs from the paper: it can be trained as well, not only put into a trained model.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int = 4,
        sinks: int = 4,
        window: int = 64,
        rope_base: float = 10000.0,
        bias: bool = False,
    ) -> None:
        super().__init__(width, heads, bias)
        if window < 2 or sinks < 0:
            raise ShapeError(f"window must be at least 2 and sinks 0 or more; received window={window}, sinks={sinks}.")
        if self.head_width % 2:
            raise ShapeError(f"RoPE turns pairs: the head width must be even; received {width}/{heads} = {self.head_width}.")
        if not 0 < rope_base < math.inf:
            raise ShapeError(f"rope_base must be positive; received {rope_base}.")
        self.sinks, self.window, self.rope_base = sinks, window, rope_base

    def init_state(self, batch: int) -> StreamingLLMState:
        """Nothing kept."""
        weight = self.k_proj.weight
        first, last = (weight.new_zeros(batch, self.heads, n, self.head_width) for n in (self.sinks, self.window - 1))
        at = torch.full((batch, self.window - 1), -1, dtype=torch.int64, device=weight.device)
        return StreamingLLMState(first, first.clone(), last, last.clone(), at, at.new_zeros(batch))

    def forward(
        self, x: Tensor, state: StreamingLLMState | None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, StreamingLLMState]:
        """Blocks of w tokens, one after the other, each with what is kept before it. See `Mixer.forward`."""
        B, T, _ = x.shape
        state = self.init_state(B) if state is None else state
        real = x.new_ones(B, T, dtype=torch.bool) if mask is None else mask
        x = x.masked_fill(~real.unsqueeze(-1), 0.0)  # whatever stands in the padding, even NaN, ends here
        q, k, v = self.project(x)
        outputs = [q[:, :, :0]]
        for begin in range(0, T, self.window):
            part = slice(begin, begin + self.window)
            start = torch.zeros_like(real[:, part]) if reset is None else reset[:, part]
            y, state = self._block(q[:, :, part], k[:, :, part], v[:, :, part], state, real[:, part], start)
            outputs.append(y)
        return self.leave(torch.cat(outputs, dim=2)), state

    def _block(
        self, q: Tensor, k: Tensor, v: Tensor, state: StreamingLLMState, real: Tensor, start: Tensor
    ) -> tuple[Tensor, StreamingLLMState]:
        """At most w tokens: no sink is read by a token of the block that it stands in, since it is in its window."""
        b, kept = q.shape[2], self.window - 1
        where, position = count_positions(state.position, b, real, start)
        segment = start.to(torch.int64).cumsum(1)
        keys, values = (torch.cat([old.to(new.dtype), new], 2) for old, new in ((state.keys, k), (state.values, v)))
        at, names = torch.cat([state.at, where], 1), torch.cat([torch.zeros_like(state.at), segment], 1)
        there = torch.cat([state.at >= 0, real], 1)
        order = torch.arange(-kept, b, device=q.device)
        own = order[kept:].unsqueeze(1) == order
        seen = (order[kept:].unsqueeze(1) >= order) & there.unsqueeze(1) & (segment.unsqueeze(2) == names.unsqueeze(1))
        seen = seen & (where.unsqueeze(2) - at.unsqueeze(1) < self.window) | own
        origin = state.position.unsqueeze(1) - self.window  # angles stay small however long the stream
        sink = torch.arange(self.sinks, device=q.device)
        reached = (where.unsqueeze(2) - sink >= self.window) & (segment == 0).unsqueeze(2)
        (near,) = rotate((q,), torch.where(segment == 0, where - origin, where), self.rope_base)
        (columns,) = rotate((keys,), torch.where(names == 0, at - origin, at), self.rope_base)
        (far,) = rotate((q,), where.clamp(max=self.sinks + kept), self.rope_base)
        (firsts,) = rotate((state.sink_keys.to(q.dtype),), sink.unsqueeze(0), self.rope_base)
        scores = torch.cat([far @ firsts.mT, near @ columns.mT], -1).to(torch.promote_types(q.dtype, torch.float32))
        scores = (scores * self.head_width**-0.5).masked_fill(~torch.cat([reached, seen], -1).unsqueeze(1), -torch.inf)
        y = torch.softmax(scores, -1).to(v.dtype) @ torch.cat([state.sink_values.to(v.dtype), values], 2)
        last = there & (names == segment[:, -1:])
        newest = torch.argsort(last.to(torch.uint8), dim=1, stable=True)[:, b:]
        valid = last.gather(1, newest)
        held = [_kept(part, newest, valid) for part in (keys, values)]
        written = (where.unsqueeze(1) == sink.unsqueeze(1)) & (real & (segment == segment[:, -1:])).unsqueeze(1)
        first = [
            torch.where(written.any(2)[:, None, :, None], written.unsqueeze(1).to(new.dtype) @ new, old.to(new.dtype))
            for old, new in ((state.sink_keys, k), (state.sink_values, v))
        ]
        at = at.gather(1, newest).masked_fill(~valid, -1)
        return y, StreamingLLMState(first[0], first[1], held[0], held[1], at, position)

    def reference(
        self, x: Tensor, state: StreamingLLMState | None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, StreamingLLMState]:
        """The cache itself: append, drop the oldest token that is no sink, rotate what is left by its place in the cache."""
        B, T, _ = x.shape
        state = self.init_state(B) if state is None else state
        x = x if mask is None else x.masked_fill(~mask.unsqueeze(-1), 0.0)
        q, k, v = self.project(x)
        both = torch.stack([k, v])  # [2, B, H, T, K]
        outputs, after = [], []
        for b in range(B):
            count = int(state.position[b])
            first = torch.stack([state.sink_keys[b], state.sink_values[b]])[:, :, :count]
            last = torch.stack([state.keys[b], state.values[b]])[:, :, state.at[b] >= 0]
            ys = [q[b, :, :0]]
            for t in range(T):
                if reset is not None and bool(reset[b, t]):
                    count, first, last = 0, first[:, :, :0], last[:, :, :0]
                if mask is not None and not bool(mask[b, t]):
                    ys.append(v[b, :, t : t + 1])
                    continue
                token = both[:, b, :, t : t + 1]
                count, last = count + 1, torch.cat([last, token], 2)[:, :, -self.window :]
                first = torch.cat([first, token], 2)[:, :, : self.sinks]
                cache = torch.cat([first[:, :, : count - last.shape[2]], last], 2)
                places = torch.arange(cache.shape[2], device=x.device).unsqueeze(0)
                (keys,) = rotate((cache[:1],), places, self.rope_base)
                (query,) = rotate((q[b : b + 1, :, t : t + 1],), places[:, -1:], self.rope_base)
                ys.append((torch.softmax(query @ keys.mT * self.head_width**-0.5, -1) @ cache[1])[0])
            outputs.append(torch.cat(ys, 1))
            last = last[:, :, -(self.window - 1) :]
            there, missing = last.shape[2], self.window - 1 - last.shape[2]
            at = torch.arange(count - there, count, device=x.device)
            after.append(
                [
                    *F.pad(first, (0, 0, 0, self.sinks - first.shape[2])).unbind(),
                    *F.pad(last, (0, 0, missing, 0)).unbind(),
                    F.pad(at, (missing, 0), value=-1),
                    torch.tensor(count, device=x.device),
                ]
            )
        parts = (torch.stack(part) for part in zip(*after, strict=True))
        return self.leave(torch.stack(outputs)), StreamingLLMState(*parts)


def _kept(x: Tensor, newest: Tensor, valid: Tensor) -> Tensor:
    """Columns [B, n] of x [B, H, ·, K], zero where there is none."""
    index = newest[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3])
    return x.gather(2, index).masked_fill(~valid[:, None, :, None], 0.0)
