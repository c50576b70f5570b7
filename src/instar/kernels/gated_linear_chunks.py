r"""Gated linear attention in chunks: batched matrix products over all chunks, and one recurrence over chunk states.

In a chunk of C tokens let b_i be the sum of the log gates from its first token to token i. With S the state before it,

    o_i = Σ_{j≤i} P_ij v_j + (scale · q_i e^{b_i})ᵀ S,      P_ij = scale · Σ_k q_ik k_jk e^{b_ik - b_jk}
    S'  = diag(e^{b_C}) S + Σ_j (k_j e^{b_C - b_j}) v_jᵀ

and the two forms differ in how they find P. `factorised` is one product (q e^b)(k e^{-b})ᵀ, whose second factor overflows when
a chunk forgets too much; `two_level` is in `gated_linear_pairs`.

The gradient of the gates is closed: with D = q ∘ dq - k ∘ dk, dg_i = Σ_{j≥i} D_j + Σ_V S' ∘ dS', chunk by chunk. (The paper
leaves the second term out and prints one sign reversed.)
Axes: M = N · B · H, one row for each of N chunks of each head; tensors are [M, C, K], [M, C, V], [M, K, V].
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from instar.kernels.chunks import join, ones, split
from instar.kernels.gated_linear_pairs import pairs, pairs_backward


class ChunkedGatedLinear(torch.autograd.Function):
    """(q, k, v, g, state, reset, scale, chunk, factorised) -> (o, state after the last token).

    q, k [B, T, H, K], v [B, T, H, V], g [B, T, H, K or 1] ≤ 0 or None, state [B, H, K, V], all of one dtype; reset bool
    [B, T] or None. `chunk` is a power of two. `factorised` asks the caller that no chunk's gates sum to less than about -40.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        g: Tensor | None,
        state: Tensor,
        reset: Tensor | None,
        scale: float,
        chunk: int,
        factorised: bool,
    ) -> tuple[Tensor, Tensor]:
        B, T, H, K = q.shape
        V, N = v.shape[-1], -(-T // chunk)
        q, k, v = split(q, N, chunk) * scale, split(k, N, chunk), split(v, N, chunk)
        segments = None if reset is None else _Segments(reset, H, N, chunk)
        A: Tensor | None = None  # e^b
        R: Tensor | None = None  # what turns k into the keys of the state: e^{-b} (factorised) or e^{b_C - b}
        alpha: Tensor | None = None
        if g is None:
            P = torch.bmm(q, k.mT)
        elif factorised:
            A = torch.matmul(ones(chunk, q), split(g, N, chunk)).exp_()
            R = A.reciprocal()
            q, k = q * A, k * R  # from here on with their powers
            P = torch.bmm(q, k.mT)
        else:
            alpha = split(g, N, chunk).exp()
            P, A, R = pairs(q, k, alpha)
        _see(P, segments)
        queries = _times(q, None if factorised else A)
        keys = _times(k, None if factorised else R)
        if segments is not None:
            queries, keys = queries * segments.early, keys * segments.late
        whole = None if A is None else A[:, -1].unsqueeze(-1)
        states = q.new_empty(N + 1, B * H, K, V)
        states[0] = state.reshape(B * H, K, V)
        added = states[1:].view(-1, K, V)
        added.copy_(torch.bmm(keys.mT, v))
        if factorised and whole is not None:
            added.mul_(whole)
        carried = _carried(whole, segments)
        for n in range(N):
            _add(states[n + 1], states[n], carried, n)
        o = torch.baddbmm(torch.bmm(P, v), queries, states[:-1].view(-1, K, V))  # FLOP counters do not see baddbmm_
        ctx.save_for_backward(q, k, v, alpha, A, R, P, states, reset)
        ctx.scale, ctx.factorised, ctx.shape = scale, factorised, (B, T, H)
        return join(o, B, T, H), states[N].view(B, H, K, V).clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do: Tensor, d_state: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, alpha, A, R, P, states, reset = ctx.saved_tensors
        B, T, H = ctx.shape
        factorised = ctx.factorised
        M, C, K = q.shape
        V, N = v.shape[-1], states.shape[0] - 1
        do = split(do, N, C)
        segments = None if reset is None else _Segments(reset, H, N, C)
        queries = _times(q, None if factorised else A)
        keys = _times(k, None if factorised else R)
        if segments is not None:
            queries, keys = queries * segments.early, keys * segments.late
        whole = None if A is None else A[:, -1].unsqueeze(-1)
        d_states = torch.empty_like(states)  # of the state before chunk n; the last one of the final state
        d_states[N] = d_state.reshape(B * H, K, V)
        d_states[:-1].view(M, K, V).copy_(torch.bmm(queries.mT, do))
        carried = _carried(whole, segments)
        for n in reversed(range(N)):
            _add(d_states[n], d_states[n + 1], carried, n)
        before, after = states[:-1].view(M, K, V), states[1:].view(M, K, V)
        d_after = d_states[1:].view(M, K, V)
        d_added = _times(d_after, whole) if factorised else d_after
        dv = torch.bmm(P.mT, do)
        dv.baddbmm_(keys, d_added)
        dP = torch.bmm(do, v.mT)
        _see(dP, segments)
        dq, dk = torch.bmm(do, before.mT), torch.bmm(v, d_added.mT)
        if segments is not None:
            dq, dk = dq * segments.early, dk * segments.late
        if factorised:
            dq.baddbmm_(dP, k)
            dk.baddbmm_(dP.mT, q)
            D = None if A is None else (q * dq).addcmul_(k, dk, value=-1.0)
            dq, dk = _times(dq, A), _times(dk, R)
        else:
            dq, dk = _times(dq, A), _times(dk, R)
            pairs_backward(dP, q, k, alpha, dq, dk)
            D = (q * dq).addcmul_(k, dk, value=-1.0)
        dg: Tensor | None = None
        if A is not None and D is not None and ctx.needs_input_grad[3]:
            end = (after * d_after).sum(-1).unsqueeze(1)
            if A.shape[-1] == 1:
                D, end = D.sum(-1, keepdim=True), end.sum(-1, keepdim=True)
            dg = torch.matmul(ones(C, q).mT, D).add_(end)
            if alpha is not None:
                dg.masked_fill_(alpha == 0, 0.0)  # a gate of -inf: what is left is rounding
            dg = join(dg, B, T, H)
        dq = dq * ctx.scale
        d_first = d_states[0].view(B, H, K, V).clone()
        return join(dq, B, T, H), join(dk, B, T, H), join(dv, B, T, H), dg, d_first, None, None, None, None


class _Segments:
    """Which tokens of a chunk belong together: none reaches over a reset."""

    def __init__(self, reset: Tensor, H: int, N: int, C: int) -> None:
        B, T = reset.shape
        segment = F.pad(reset.to(torch.int64), (0, N * C - T)).view(B, N, C).cumsum(-1)
        segment = segment.transpose(0, 1).unsqueeze(2).expand(N, B, H, C).reshape(-1, C)
        self.apart = segment.unsqueeze(2) != segment.unsqueeze(1)
        """[M, C, C]"""
        self.early = (segment == 0).unsqueeze(2)
        """[M, C, 1]: still reads the state before the chunk."""
        self.late = (segment == segment[:, -1:]).unsqueeze(2)
        """[M, C, 1]: is read by the state after it."""
        self.kept = (segment[:, -1] == 0).view(-1, 1, 1)
        """[M, 1, 1]: the state before passes through."""


def _times(x: Tensor, factor: Tensor | None) -> Tensor:
    return x if factor is None else x * factor


def _see(P: Tensor, segments: _Segments | None) -> None:
    """Pairs of a key after its query, or in another segment, become zero."""
    P.tril_()
    if segments is not None:
        P.masked_fill_(segments.apart, 0.0)


def _carried(whole: Tensor | None, segments: _Segments | None) -> Tensor | None:
    """What a chunk leaves of the state before it, [M, K or 1, 1]; None is all."""
    if segments is None or whole is None:
        return whole if segments is None else segments.kept
    return whole * segments.kept


def _add(total: Tensor, state: Tensor, carried: Tensor | None, n: int) -> None:
    """total += carried of chunk n · state, all rows [B · H, K, V] of one chunk."""
    if carried is None:
        total.add_(state)
    else:
        rows = state.shape[0]
        total.addcmul_(state, carried[n * rows : (n + 1) * rows].to(state.dtype))
