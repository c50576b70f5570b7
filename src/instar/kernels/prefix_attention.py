"""Softmax attention of one fixed query over every prefix, with a state of constant size.

Feng et al. 2024, "Attention as an RNN" (arXiv 2405.13956). A set A of tokens with scores s and values v is
summed up by
    m = max s_i,    u = Σ exp(s_i − m),    w = Σ exp(s_i − m) v_i,    and attention over A is w / u.
Two such triples merge into that of the union, so all prefixes come from one scan, and a stream from one merge a token. Inside
this file u and w are one tensor x = [u, w] of width 1 + V, whose leaf is [1, v_i] at m = s_i.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from instar.errors import ShapeError

Method = Literal["auto", "sequential", "hillis_steele", "blelloch", "block"]


class PrefixState(NamedTuple):
    """The triple of a prefix; the empty one is (-inf, 0, 0). Float32 or better."""

    m: Tensor
    """[B, H], the largest score."""
    u: Tensor
    """[B, H]"""
    w: Tensor
    """[B, H, V]"""


def empty_state(batch: int, heads: int, value_width: int, like: Tensor) -> PrefixState:
    """The state before the first token: the identity of `merge_states`, on the device of `like`."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    u = torch.zeros(batch, heads, dtype=dtype, device=like.device)
    w = torch.zeros(batch, heads, value_width, dtype=dtype, device=like.device)
    return PrefixState(u - math.inf, u, w)


def merge_states(a: PrefixState, b: PrefixState) -> PrefixState:
    """The state of two streams together: associative and commutative up to rounding, exact in the order of neither."""
    m, x = _merge(a.m, _join(a), b.m, _join(b))
    return PrefixState(m, x[..., 0], x[..., 1:])


def prefix_attention(
    scores: Tensor,
    values: Tensor,
    state: PrefixState | None = None,
    *,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
    decay: float = 0.0,
    method: Method = "auto",
    block: int = 32,
) -> tuple[Tensor, PrefixState]:
    """o_j = Σ_{i≤j} softmax_i(s_1..s_j) v_i for every j, continuing from `state`.

    Args:
        scores: s [B, T, H], finite.
        values: v [B, T, H, V].
        state: of the tokens before; None is the empty one.
        mask: bool [B, T], False leaves a token out.
        reset: bool [B, T], True forgets everything before that token.
        decay: λ ≥ 0, subtracted from every earlier score at each real token (not in the paper). A call adds up to λT to the
            scores, so that for λT beyond 10⁴ a stream should be cut into several calls.
        method: "sequential" is the recurrence; "hillis_steele" (O(T log T) work) and "blelloch" (O(T)) are the parallel scans;
            "block" sums blocks, scans their totals in the same way, and fills the blocks by matrix products; "auto" is the
            recurrence for one token and blocks otherwise. All are equal in values and gradients.
        block: tokens in a block.

    Returns the outputs [B, T, H, V] in the type of `values` (where no token has been seen: 0) and the state after the last token.
    Raises ShapeError. "block" takes O(T · block · H · V) time and O(T · block · H) memory.
    """
    if scores.dim() != 3 or values.dim() != 4 or values.shape[:3] != scores.shape:
        raise ShapeError(f"scores [B, T, H] and values [B, T, H, V] expected; received {[*scores.shape]} and {[*values.shape]}.")
    if block < 2 or decay < 0:
        raise ShapeError(f"block must be at least 2 and decay not negative; received block={block}, decay={decay}.")
    B, T, H = scores.shape
    if state is None:
        state = empty_state(B, H, values.shape[-1], scores)
    if T == 0:
        return values, state
    with torch.autocast(scores.device.type, enabled=False):
        m = scores.to(state.w.dtype).transpose(1, 2)
        v = values.to(state.w.dtype).transpose(1, 2)
        age = None
        if decay:
            age = torch.ones_like(m[:, :1]) if mask is None else mask.unsqueeze(1).to(m.dtype)
            age = decay * age.cumsum(-1)
            m = m + age
        if mask is not None:
            m = m.masked_fill(~mask.unsqueeze(1), -math.inf)
            v = v.masked_fill(~mask[:, None, :, None], 0.0)
        x = F.pad(v, (1, 0), value=1.0)
        if method == "auto":
            method = "sequential" if T == 1 else "block"
        if method == "block":
            x, end, x_end = _block(m, x, reset, state.m, _join(state), block)
        elif method == "sequential":
            x, end, x_end = _sequential(m, x, reset, state.m, _join(state))
        else:
            x, end, x_end = _scan(m, x, reset, state.m, _join(state), method)
        if age is not None:
            end = end - age[..., -1]
        u = x[..., :1]
        out = x[..., 1:] / u.masked_fill(u == 0, 1.0)
    return out.transpose(1, 2).to(values.dtype), PrefixState(end, x_end[..., 0], x_end[..., 1:])


def _join(state: PrefixState) -> Tensor:
    return torch.cat([state.u.unsqueeze(-1), state.w], dim=-1)


def _finite(m: Tensor) -> Tensor:
    """A maximum to subtract: 0 where nothing has been seen, so that exp(-inf - m) is 0 and never exp(-inf + inf)."""
    return m.masked_fill(m == -math.inf, 0.0)


def _merge(m_a: Tensor, x_a: Tensor, m_b: Tensor, x_b: Tensor) -> tuple[Tensor, Tensor]:
    m = torch.maximum(m_a, m_b)
    safe = _finite(m)
    return m, x_a * (m_a - safe).exp().unsqueeze(-1) + x_b * (m_b - safe).exp().unsqueeze(-1)


def _block(m: Tensor, x: Tensor, reset: Tensor | None, m_0: Tensor, x_0: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """`x` of every prefix, and `m`, `x` at the end, with the end's gradients those of a true maximum."""
    T = m.shape[-1]
    _, x = _fill(m, x, reset, m_0, x_0, size)
    first = m_0
    if reset is not None:
        later = reset.flip(1).to(torch.int64).cumsum(1).flip(1) - reset.to(torch.int64)  # resets after each token
        m = m.masked_fill((later > 0).unsqueeze(1), -math.inf)
        first = m_0.masked_fill(reset.any(1, keepdim=True), -math.inf)
    end = torch.maximum(first, m.amax(-1))
    factor = (end.detach() - end).nan_to_num(0.0)  # zero in value: `_fill` takes its maxima as constants
    return x, end, x[..., T - 1, :] * factor.exp().unsqueeze(-1)


def _fill(m: Tensor, x: Tensor, reset: Tensor | None, m_0: Tensor, x_0: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Inclusive scan of m [B, H, T], x [B, H, T, X] after (m_0 [B, H], x_0 [B, H, X]), by blocks.

    The maxima are constants to autograd (outputs do not depend on them), which leaves the gradient of a softmax.
    """
    T = m.shape[-1]
    size = min(size, T)
    N = -(-T // size)
    m = F.pad(m, (0, N * size - T), value=-math.inf).unflatten(-1, (N, size))
    x = F.pad(x, (0, 0, 0, N * size - T)).unflatten(-2, (N, size))
    segment = None
    if reset is not None:
        segment = F.pad(reset.to(torch.int64), (0, N * size - T)).unflatten(-1, (N, size)).cumsum(-1).unsqueeze(1)
    m_c, x_c = m_0.unsqueeze(-1), x_0.unsqueeze(-2)  # what comes before each block
    if N > 1:
        last = m[..., :-1, :]
        if segment is not None:
            last = last.masked_fill(segment[..., :-1, :] != segment[..., :-1, -1:], -math.inf)
        top = last.detach().amax(-1)
        total = ((last - _finite(top).unsqueeze(-1)).exp().unsqueeze(-2) @ x[..., :-1, :, :]).squeeze(-2)
        dropped = None if segment is None else segment[:, 0, :-1, -1] > 0
        m_s, x_s = _fill(top, total, dropped, m_0, x_0, max(size, 2))
        m_c, x_c = torch.cat([m_c, m_s], dim=-1), torch.cat([x_c, x_s], dim=-2)
    m_c = m_c.unsqueeze(-1)
    allowed = torch.ones(size, size, dtype=torch.bool, device=m.device).tril()
    if segment is None:
        inside = m.detach().cummax(-1).values
    else:
        allowed = allowed & (segment.unsqueeze(-1) == segment.unsqueeze(-2))
        inside = m.detach().unsqueeze(-2).masked_fill(~allowed, -math.inf).amax(-1)
        m_c = m_c.masked_fill(segment > 0, -math.inf)
    top = torch.maximum(inside, m_c.detach())
    safe = _finite(top)
    weights = (m.unsqueeze(-2) - safe.unsqueeze(-1)).masked_fill(~allowed, -math.inf).exp()
    x = weights @ x + (m_c - safe).exp().unsqueeze(-1) * x_c.unsqueeze(-2)
    return top.flatten(-2)[..., :T], x.flatten(-3, -2)[..., :T, :]


def _sequential(m: Tensor, x: Tensor, reset: Tensor | None, m_t: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The recurrence: one merge a token."""
    xs = []
    for t in range(m.shape[-1]):
        if reset is not None:
            m_t = m_t.masked_fill(reset[:, t, None], -math.inf)
        m_t, x_t = _merge(m_t, x_t, m[..., t], x[..., t, :])
        xs.append(x_t)
    return torch.stack(xs, dim=-2), m_t, x_t


def _scan(m: Tensor, x: Tensor, reset: Tensor | None, m_0: Tensor, x_0: Tensor, method: Method) -> tuple[Tensor, Tensor, Tensor]:
    """The parallel scans over the sequence (state, tokens…). `f` marks elements that forget what is before them."""
    m = torch.cat([m_0.unsqueeze(-1), m], dim=-1)
    x = torch.cat([x_0.unsqueeze(-2), x], dim=-2)
    f = torch.zeros_like(m, dtype=torch.bool)
    if reset is not None:
        f = F.pad(reset, (1, 0)).unsqueeze(1).expand_as(m)
    scans = {"hillis_steele": _hillis_steele, "blelloch": _blelloch}
    if method not in scans:
        raise ShapeError(f"method must be auto, sequential, block, {', '.join(scans)}; received '{method}'.")
    m, x = scans[method](m, x, f)
    return x[..., 1:, :], m[..., -1], x[..., -1, :]


def _after(m_a: Tensor, x_a: Tensor, m_b: Tensor, x_b: Tensor, f_b: Tensor) -> tuple[Tensor, Tensor]:
    """Merge a with the b that follows it, which forgets a where `f_b`."""
    return _merge(m_a.masked_fill(f_b, -math.inf), x_a, m_b, x_b)


def _hillis_steele(m: Tensor, x: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
    off = 1
    while off < m.shape[-1]:
        m_t, x_t = _after(m[..., :-off], x[..., :-off, :], m[..., off:], x[..., off:, :], f[..., off:])
        m = torch.cat([m[..., :off], m_t], dim=-1)
        x = torch.cat([x[..., :off, :], x_t], dim=-2)
        f = torch.cat([f[..., :off], f[..., off:] | f[..., :-off]], dim=-1)
        off *= 2
    return m, x


def _blelloch(m: Tensor, x: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
    N = m.shape[-1]
    if N == 1:
        return m, x
    pairs = N // 2
    even = m[..., : 2 * pairs : 2], x[..., : 2 * pairs : 2, :]
    odd = m[..., 1::2], x[..., 1::2, :]
    m_o, x_o = _blelloch(*_after(*even, *odd, f[..., 1::2]), f[..., 1::2] | f[..., : 2 * pairs : 2])  # at odd places
    before = (N - 1) // 2  # even places after the first
    m_e, x_e = _after(m_o[..., :before], x_o[..., :before, :], m[..., 2::2], x[..., 2::2, :], f[..., 2::2])
    m_e, x_e = torch.cat([m[..., :1], m_e], dim=-1), torch.cat([x[..., :1, :], x_e], dim=-2)
    m_out, x_out = torch.empty_like(m), torch.empty_like(x)
    m_out[..., ::2], m_out[..., 1::2] = m_e, m_o
    x_out[..., ::2, :], x_out[..., 1::2, :] = x_e, x_o
    return m_out, x_out
