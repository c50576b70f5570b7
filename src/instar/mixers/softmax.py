"""Causal softmax attention with rotary positions and grouped key heads: the baseline of every token mixer.

Vaswani et al. 2017 (arXiv 1706.03762), Su et al. 2021 (RoPE, 2104.09864), Ainslie et al. 2023 (GQA, 2305.13245).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.errors import ShapeError
from instar.interfaces import Mixer
from instar.kernels.decode_attention import attend as decode
from instar.kernels.decode_attention_mask import plan_of_all, plan_of_mask
from instar.kernels.eager_attention import scores
from instar.mixers.positions import columns, count_positions, rotate

BLOCK = 128
"""The cache grows by this many columns at a time."""
MANY = 2**15
"""Cached keys, over all rows and heads, from which one token is worth a plan: padding is left out, and each key read once."""
MANY_NARROW = 2**11
"""The same for numbers of 16 bits, which SDPA reads ten to a hundred times as slowly where there is one query for each head."""


class SoftmaxState(NamedTuple):
    """A KV cache. C columns of capacity, of which the first `length` are filled; keys are stored after rotation.

    Handles of one generation share a buffer: a call writes behind the columns of the handle it was given when that handle is
    the newest (`length == newest`), and copies otherwise. What a handle can see (its first `length` columns, its `valid`)
    never changes.
    """

    keys: Tensor
    """[B, Hkv, C, K]: a head's columns lie together, which halves the time of a decoding step at 16K columns."""
    values: Tensor
    """[B, Hkv, C, K]"""
    valid: Tensor
    """bool [B, C]: columns that later tokens may attend to."""
    position: Tensor
    """int64 [B]: real tokens since the last reset."""
    length: Tensor
    """int64 [B]: columns filled in this handle, equal for all rows."""
    newest: Tensor
    """int64 [B]: columns filled by the newest handle of this buffer; one memory for all of them."""


class Softmax(Mixer):
    r"""Multi-head causal attention: o_t = Σ_{i≤t} softmax_i(⟨R_t q_t, R_i k_i⟩ / √K) v_i, with rotation R_t by position.

    The rotation turns the pair of coordinates (j, j + K/2) by the angle t · rope_base^(-2j/K). Positions count real tokens
    since the last reset. Each of `kv_heads` keys and values serves heads / kv_heads query heads.

    Args:
        width: D, a multiple of heads.
        heads: H query heads of width K = D / H (even with rope).
        kv_heads: heads of keys and values, a divisor of heads; 0 means as many as heads.
        rope: rotate queries and keys; without it the layer is blind to order beyond causality.
        rope_base: longest wavelength / 2π of the rotation.
        bias: biases of the four projections.

    Shapes: x [B, T, D] -> [B, T, D]; state `SoftmaxState`. Raises ShapeError. O(T² D + T D²) time, O(T) state.
    Differs from the papers: no dropout on the attention weights; outputs at padding mean nothing (pads attend to themselves).

    Other attentions derive from this class and say how scores become weights (`weigh`, and `read` for the fast form), what
    becomes of a query before it is scored (`settle`) or of a head's output (`emit`); cache, padding and packing are the same for
    all. Where positions do more than to rotate what is cached, `placed` is True, and `read_placed` and `score_placed` say what.
    """

    placed: bool = False

    def __init__(
        self,
        width: int,
        *,
        heads: int = 4,
        kv_heads: int = 0,
        rope: bool = True,
        rope_base: float = 10000.0,
        bias: bool = False,
    ) -> None:
        super().__init__()
        kv_heads = kv_heads or heads
        if heads < 1 or width < heads or width % heads:
            raise ShapeError(f"width must be a positive multiple of heads; received width={width}, heads={heads}.")
        if kv_heads < 1 or heads % kv_heads:
            raise ShapeError(f"kv_heads must divide heads={heads} (or be 0 for as many); received {kv_heads}.")
        if rope and (width // heads) % 2:
            raise ShapeError(f"RoPE turns pairs: the head width must be even; received {width}/{heads} = {width // heads}.")
        if not 0 < rope_base < math.inf:
            raise ShapeError(f"rope_base must be positive and finite; received {rope_base}.")
        self.width, self.heads, self.kv_heads, self.head_width = width, heads, kv_heads, width // heads
        self.rope, self.rope_base = rope, rope_base
        self.q_proj = nn.Linear(width, width, bias=bias)
        self.k_proj = nn.Linear(width, kv_heads * self.head_width, bias=bias)
        self.v_proj = nn.Linear(width, kv_heads * self.head_width, bias=bias)
        self.o_proj = nn.Linear(width, width, bias=bias)

    def init_state(self, batch: int) -> SoftmaxState:
        """An empty cache of no columns."""
        weight = self.k_proj.weight
        empty = weight.new_zeros(batch, self.kv_heads, 0, self.head_width)
        valid = torch.zeros(batch, 0, dtype=torch.bool, device=weight.device)
        position, length, newest = torch.zeros(3, batch, dtype=torch.int64, device=weight.device).unbind()
        return SoftmaxState(empty, empty.clone(), valid, position, length.clone(), newest.clone())

    def forward(
        self, x: Tensor, state: SoftmaxState | None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, SoftmaxState]:
        """SDPA: its causal form for plain sequences, no mask for one token, boolean masks otherwise. See `Mixer.forward`."""
        B, T, _ = x.shape
        state = self.init_state(B) if state is None else state
        if T == 0:
            return self.o_proj(x), state
        plain = mask is None and reset is None
        if mask is not None:
            x = x.masked_fill(~mask.unsqueeze(-1), 0.0)  # whatever stands in the padding, even NaN, ends here
        positions, position = count_positions(state.position, T, mask, reset)
        q, k, v = self._project(x, positions)
        compiling = torch.compiler.is_compiling()
        past = state.keys.shape[2] if compiling else int(state.length[0])  # compiled: unfilled columns are invalid ones
        old = state.valid[:, :past]
        attend: Tensor | None = None
        causal = False
        if plain and past == 0:
            causal = True
        elif not plain or T > 1 or compiling or not bool(old.all()):
            attend = _visible(old, T, mask, reset)
        keys, values, state = _append(state, past, q, k, v, _valid(old, T, mask, reset), position)
        if self.placed:
            y = self.read_placed(q, keys, values, attend, causal, positions, columns(old, positions))
        else:
            y = self.read(q, keys, values, attend, causal)
        return self.o_proj(self.emit(x, y.transpose(1, 2)).flatten(2)), state

    def reference(
        self, x: Tensor, state: SoftmaxState | None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, SoftmaxState]:
        """softmax(QKᵀ/√K + M) V with M written out entry by entry."""
        B, T, _ = x.shape
        state = self.init_state(B) if state is None else state
        if T == 0:
            return self.o_proj(x), state
        real = torch.ones(B, T, dtype=torch.bool).tolist() if mask is None else mask.tolist()
        start = torch.zeros(B, T, dtype=torch.bool).tolist() if reset is None else reset.tolist()
        past, old, before = int(state.length[0]), state.valid.tolist(), state.valid
        position, after = torch.zeros(B, T, dtype=torch.int64), []
        M = torch.full((B, T, past + T), -torch.inf)
        for b in range(B):
            count, first = int(state.position[b]), 0  # first: the column where the present sequence starts
            for t in range(T):
                if start[b][t]:
                    count, first = 0, past + t
                position[b, t] = count
                count += real[b][t]
                for c in range(first, past + t + 1):
                    if (old[b][c] if c < past else real[b][c - past]) or c == past + t:
                        M[b, t, c] = 0.0
            after.append(count)
        x = x if mask is None else x.masked_fill(~mask.unsqueeze(-1), 0.0)
        q, k, v = self._project(x, position.to(x.device))
        valid = _valid(state.valid[:, :past], T, mask, reset)
        keys, values, state = _append(state, past, q, k, v, valid, torch.tensor(after, device=x.device))
        keys, values = (part.repeat_interleave(self.heads // self.kv_heads, dim=1) for part in (keys, values))
        q = self.settle(q, keys, (M == 0).unsqueeze(1).to(q.device))
        if self.placed:
            where = position.to(q.device)
            products = self.score_placed(q, keys, where, columns(before[:, :past], where))
        else:
            products = torch.einsum("bhtk,bhck->bhtc", q, keys) * self.head_width**-0.5
        weights = self.weigh(products + M.to(products).unsqueeze(1))
        return self.o_proj(self.emit(x, torch.einsum("bhtc,bhck->bthk", weights, values)).flatten(2)), state

    def read(self, q: Tensor, keys: Tensor, values: Tensor, attend: Tensor | None, causal: bool) -> Tensor:
        """What queries [B, H, T, K] read from C columns, [B, H, T, K].

        attend: bool [B, 1, T, C], the columns that each may see; None for all, or with `causal` (C = T) those up to its own.
        """
        if q.shape[2] == 1 and not torch.compiler.is_compiling():
            plan = None
            if keys.shape[:3].numel() < (MANY_NARROW if keys.dtype.itemsize == 2 else MANY):
                pass
            elif attend is None:
                plan = plan_of_all(len(q), keys.shape[2], self.kv_heads)
            elif attend.dtype == torch.bool and attend.shape[:-1] == (len(q), 1, 1):  # not all who call have
                plan = plan_of_mask(attend[:, 0, 0], self.kv_heads)
            if plan is not None:
                return decode(plan, q, keys, values)[0]
        shared = self.kv_heads != self.heads
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=attend, is_causal=causal, enable_gqa=shared)

    def read_placed(
        self, q: Tensor, keys: Tensor, values: Tensor, attend: Tensor | None, causal: bool, where: Tensor, at: Tensor
    ) -> Tensor:
        """`read`, knowing the positions of the queries, `where` [B, T], and of the columns, `at` [B, C]."""
        raise NotImplementedError

    def score_placed(self, q: Tensor, keys: Tensor, where: Tensor, at: Tensor) -> Tensor:
        """The scores [B, H, T, C] of queries with all columns [B, H, C, K], for `reference` and `attention`."""
        raise NotImplementedError

    def settle(self, q: Tensor, keys: Tensor, attend: Tensor) -> Tensor:
        """The queries with which columns are weighed, for `reference` and `attention`; arguments as `read`."""
        return q

    def weigh(self, scores: Tensor) -> Tensor:
        """The weights [B, H, T, C] of scores, which are −∞ at columns that are not seen."""
        return torch.softmax(scores, dim=-1)

    def emit(self, x: Tensor, y: Tensor) -> Tensor:
        """Head outputs [B, T, H, K] as they enter the output projection; x [B, T, D] is the layer's input."""
        return y

    def attention(self, x: Tensor, *, mask: Tensor | None = None, reset: Tensor | None = None) -> Tensor:
        """The weights [B, H, T, T] over a whole sequence, for those who look at them. Arguments as `forward`."""
        B, T, _ = x.shape
        x = x if mask is None else x.masked_fill(~mask.unsqueeze(-1), 0.0)
        where, _ = count_positions(torch.zeros(B, dtype=torch.int64, device=x.device), T, mask, reset)
        q, k, _ = self._project(x, where)
        attend = _visible(x.new_zeros(B, 0, dtype=torch.bool), T, mask, reset)
        if self.placed:
            k = k.repeat_interleave(self.heads // self.kv_heads, dim=1)
            return self.weigh(self.score_placed(q, k, where, where).masked_fill(~attend, -torch.inf))
        return self.weigh(scores(self.settle(q, k, attend), k, attend))

    def _project(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, H, T, K], keys and values [B, Hkv, T, K], the first two rotated."""
        q, k, v = (
            projection(x).unflatten(-1, (count, self.head_width)).transpose(1, 2)
            for projection, count in ((self.q_proj, self.heads), (self.k_proj, self.kv_heads), (self.v_proj, self.kv_heads))
        )
        return (*self._rotated(q, k, positions), v)

    def _rotated(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, ...]:
        """Queries and keys [B, H, T, K] as they are scored and cached, at positions [B or 1, T]."""
        return rotate((q, k), positions, self.rope_base) if self.rope else (q, k)


def join(states: Sequence[SoftmaxState]) -> SoftmaxState:
    """The rows of several caches of any lengths as one: they end at the same column, and what is before a row is not valid."""
    lengths = [int(state.length[0]) for state in states]
    last = max(lengths)
    capacity = -(-(last + 1) // BLOCK) * BLOCK
    rows = sum(len(state.length) for state in states)
    keys, values = (part.new_zeros(rows, part.shape[1], capacity, part.shape[3]) for part in states[0][:2])
    valid = states[0].valid.new_zeros(rows, capacity)
    row = 0
    for state, length in zip(states, lengths, strict=True):
        own, place = slice(row, row + len(state.length)), slice(last - length, last)
        keys[own, :, place], values[own, :, place] = state.keys[:, :, :length], state.values[:, :, :length]
        valid[own, place] = state.valid[:, :length]
        row = own.stop
    position = torch.cat([state.position for state in states])
    length_now = torch.full_like(position, last)
    return SoftmaxState(keys, values, valid, position, length_now, length_now.clone())


def _visible(old: Tensor, T: int, mask: Tensor | None, reset: Tensor | None) -> Tensor:
    """bool [B, 1, T, C + T]: which columns each new token attends to, given the valid `old` [B, C]; always its own."""
    B, C = old.shape
    row = torch.arange(T, device=old.device)
    new = (row.unsqueeze(1) >= row).expand(B, T, T)
    if mask is not None:
        new = new & (mask.unsqueeze(1) | torch.eye(T, dtype=torch.bool, device=old.device))
    past = old.unsqueeze(1).expand(B, T, C)
    if reset is not None:
        segment = reset.to(torch.int64).cumsum(1)
        new = new & (segment.unsqueeze(2) == segment.unsqueeze(1))
        past = past & (segment == 0).unsqueeze(2)
    return torch.cat([past, new], dim=2).unsqueeze(1)


def _valid(old: Tensor, T: int, mask: Tensor | None, reset: Tensor | None) -> Tensor:
    """bool [B, C + T]: the columns that tokens after this call may attend to."""
    new = old.new_ones(old.shape[0], T) if mask is None else mask
    if reset is not None:
        segment = reset.to(torch.int64).cumsum(1)
        new = new & (segment == segment[:, -1:])
        old = old & ~reset.any(1, keepdim=True)
    return torch.cat([old, new], dim=1)


def _append(
    state: SoftmaxState, past: int, q: Tensor, k: Tensor, v: Tensor, valid: Tensor, position: Tensor
) -> tuple[Tensor, Tensor, SoftmaxState]:
    """Keys and values [B, Hkv, past + T, K] of all columns, and the new handle.

    Three ways with one meaning: concatenation where a graph is recorded, writing in place to the newest handle, and a copy
    with room to grow. The cache has the type of `k`, so that under autocast nothing is converted at each token.
    """
    columns = past + k.shape[2]
    length = torch.full_like(state.length, columns)
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v, *state[:2]))):
        keys = torch.cat([state.keys[:, :, :past].to(k.dtype), k], dim=2)
        values = torch.cat([state.values[:, :, :past].to(v.dtype), v], dim=2)
        return keys, values, SoftmaxState(keys, values, valid, position, length, length.clone())
    keys, values, newest = state.keys, state.values, state.newest
    frozen = keys.is_inference() and not torch.is_inference_mode_enabled()
    if frozen or columns > keys.shape[2] or keys.dtype != k.dtype or not bool((newest == state.length).all()):
        capacity = -(-columns // BLOCK) * BLOCK
        keys, values = (t.new_zeros(*t.shape[:2], capacity, t.shape[3]) for t in (k, v))
        keys[:, :, :past], values[:, :, :past] = state.keys[:, :, :past], state.values[:, :, :past]
        newest = length.clone()
    keys[:, :, past:columns], values[:, :, past:columns] = k, v
    newest.fill_(columns)
    valid = F.pad(valid, (0, keys.shape[2] - columns))
    return keys[:, :, :columns], values[:, :, :columns], SoftmaxState(keys, values, valid, position, length, newest)
