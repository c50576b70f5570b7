r"""A memory that learns while it reads: steps on a window of tokens (Omega rule), momentum, orthogonalised steps, in chunks.

For each head, with G_{t,i} the gradient of what the network M shall remember of token i at the weights A before t's chunk,

    g_t = Σ_{j<c} γ_{t,j} G_{t,t-j}
    gradient   W_t = α_t W_{t-1} - η_t g_t
    momentum   S_t = θ_t S_{t-1} + η_t g_t,     W_t = α_t W_{t-1} - S_t
    Muon       S_t = θ_t S_{t-1} + g_t,         W_t = α_t W_{t-1} - η_t NS(S_t)
    read       o_t = M(φ(q_t); W_t)

In a chunk nothing but A is differentiated at, so W_t is linear in what the chunk began with and in rank-one gradients e_i x_iᵀ:

    W_t = a_t W - s_t S - Σ_i P_ti e_i x_iᵀ,     W_t x = a_t W x - s_t S x - Σ_i P_ti (x_iᵀ x) e_i

with a, s and P from the gates alone. A layer of M is read by the right-hand side: products of C x C, and no W_t is laid out.
Muon's NS is not linear and needs every S_t, unless it is taken once a chunk (`lagged`). Only W, S and the errors go from chunk
to chunk; reads are taken for many chunks at once.

Behrouz et al. 2025, arXiv 2505.23735; Titans: Behrouz et al. 2024, arXiv 2501.00663.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from instar.errors import ShapeError
from instar.kernels.anchored_chunks import AnchoredChunks
from instar.kernels.chunks import TOGETHER
from instar.kernels.memory_network import MemoryNetwork
from instar.kernels.omega_gates import Gates, gates
from instar.kernels.omega_steps import Memory, by_token, fixed, lagged_muon, muon, reader, step

Features = Callable[[Tensor], Tensor]


class MemoryState(NamedTuple):
    """A memory between calls: its size does not grow. Lists are in the order of the network's weights, [B, H, ...] each."""

    anchor: list[Tensor]
    """Weights before the chunk that the next token belongs to."""
    weights: list[Tensor]
    """W, after the last token; where Muon steps once a chunk, without the step that is still to come."""
    momentum: list[Tensor]
    """S; empty without momentum."""
    k: Tensor
    """[B, c - 1, H, K], keys of the last tokens, zero where there are none."""
    v: Tensor
    """[B, c - 1, H, V]."""
    pending: Tensor
    """[B, H], the length of Muon's step that is still to come; zero otherwise."""
    seen: Tensor
    """int64 [B], tokens of the present sequence."""


@dataclass(frozen=True)
class OmegaRule:
    """How the memory learns; what it is made of is `network`."""

    network: MemoryNetwork
    window: int = 1
    """c: a step looks at the last c tokens."""
    chunk: int = 16
    """C. Part of the model: another chunk is another function (C = 1 takes every gradient at the present weights)."""
    momentum: bool = False
    newton_schulz: int = 0
    """Iterations of NS; 0 leaves S as it is. Needs momentum."""
    lagged: bool = False
    """Reads see the weights after the last whole chunk, the token's own if it completes one, and Muon steps once a chunk, by the
    sum of its tokens' steps."""

    def __post_init__(self) -> None:
        if min(self.window, self.chunk) < 1 or self.newton_schulz < 0:
            raise ShapeError(
                "window and chunk must be positive and newton_schulz at least 0; "
                f"received window={self.window}, chunk={self.chunk}, newton_schulz={self.newton_schulz}."
            )
        if self.newton_schulz and not self.momentum:
            raise ShapeError(f"newton_schulz={self.newton_schulz} orthogonalises the momentum; received momentum=False.")

    def start(self, initial: list[Tensor], batch: int, key_width: int, value_width: int) -> MemoryState:
        """Before the first token: initial weights [H, ...] for every row."""
        first = initial[0]
        weights = [w.expand(batch, *w.shape) for w in initial]
        k, v = (first.new_zeros(batch, self.window - 1, first.shape[0], width) for width in (key_width, value_width))
        momentum = [torch.zeros_like(w) for w in weights] if self.momentum else []
        pending = first.new_zeros(batch, first.shape[0])
        seen = torch.zeros(batch, dtype=torch.int64, device=first.device)
        return MemoryState(weights, [*weights], momentum, k, v, pending, seen)

    def __call__(
        self,
        initial: list[Tensor],
        features: Features,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        log_alpha: Tensor,
        log_theta: Tensor | None,
        eta: Tensor,
        gamma: Tensor | None,
        *,
        state: MemoryState | None = None,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
    ) -> tuple[Tensor, MemoryState]:
        """Read and learn T tokens, all of one dtype.

        initial: weights of a new sequence, [H, ...] each. features: φ, [..., K] to [..., F].
        q, k: [B, T, H, K]. v: [B, T, H, V]; V = K where the network has a residual.
        log_alpha, log_theta: [B, T, H], log of what W and S keep, finite and ≤ 0; log_theta None without momentum.
        eta: [B, T, H]. gamma: [B, T, H, c], the weight at step t of token t - j; None for c = 1 is 1.
        mask, reset: bool [B, T] as for a mixer.

        Returns o [B, T, H, V] and the state after the last token. Raises ShapeError.
        O(T H (|W| (1 + c / C) + (C + c) (F + K))) time; with Muon at every token O(T H steps |W| min(M, N)).
        """
        self._check(q, k, v, log_theta, gamma)
        (B, T, H, _), C = q.shape, self.chunk
        before = self.start(initial, B, k.shape[-1], v.shape[-1]) if state is None else state
        if T == 0:
            return v, before
        layout = AnchoredChunks(B, T, C, self.window - 1, None if state is None else state.seen, mask, reset, q.device)

        def rows(x: Tensor) -> Tensor:  # [N, B, tokens, H, X] to [N, B * H, tokens, X]
            return x.transpose(2, 3).flatten(1, 2)

        def gate(x: Tensor) -> Tensor:  # zero where no token stands: nothing is kept less, and nothing learnt
            x = rows(layout.chunks(x if x.dim() == 4 else x.unsqueeze(-1)))
            return x if layout.own is None else x * layout.own.repeat_interleave(H, 1).unsqueeze(-1)

        real = gate(torch.ones_like(eta))
        theta, weight = None if log_theta is None else gate(log_theta), real if gamma is None else gate(gamma)
        plan = gates(gate(log_alpha), theta, gate(eta), weight, real, muon=self.newton_schulz > 0)
        inputs = rows(layout.chunks(q)), rows(layout.windows(k, before.k)), rows(layout.windows(v, before.v))
        there = layout.before.repeat_interleave(H, 1).unsqueeze(-1)
        new, now = self._rows(self.start(initial, B, 0, 0)), self._rows(before)
        size = max(1, TOGETHER // (B * H * C))
        outputs, chunk = [], 0
        for z, own_k, own_v, real_k, part in zip(*(x.split(size) for x in (*inputs, there)), plan.split(size), strict=True):
            at, chunk = range(chunk, chunk + z.shape[0]), chunk + z.shape[0]
            o, now = self._learn(now, new, features, z, own_k, features(own_k) * real_k, own_v, part, layout, at)
            outputs.append(o)
        if layout.dropped is not None:
            now = _where(now, layout.dropped.repeat_interleave(H), new)
        o = torch.cat(outputs).unflatten(1, (B, H)).transpose(2, 3)
        kept = layout.carried(k, before.k), layout.carried(v, before.v)
        anchor, weights, momentum = ([w.unflatten(0, (B, H)) for w in group] for group in (now.anchor, now.weights, now.momentum))
        after = MemoryState(anchor, weights, momentum, *kept, now.pending.unflatten(0, (B, H)), layout.seen)
        return layout.back(o), after

    def _learn(
        self,
        now: Memory,
        new: Memory,
        features: Features,
        z: Tensor,
        k: Tensor,
        phi: Tensor,
        v: Tensor,
        plan: Gates,
        layout: AnchoredChunks,
        at: range,
    ) -> tuple[Tensor, Memory]:
        """Chunks `at`, [G, R, ·, ·], one after the other, then their reads. Returns o and the memory after them."""
        H, steps = k.shape[1] // layout.B, self.newton_schulz
        memories, pairs, every, after = [], [], [], []
        whole: bool | Tensor
        gates = plan.each() if steps and not self.lagged else plan.last()
        for n, of_k, of_phi, of_v, gate in zip(at, k.unbind(), phi.unbind(), v.unbind(), gates, strict=True):
            if layout.fresh is not None:
                now = _where(now, layout.fresh[n].repeat_interleave(H), new)
            whole = (n + 1) * self.chunk <= layout.T if layout.full is None else layout.full[n].repeat_interleave(H)
            whole = _known(whole)
            memories.append(now)
            pairs.append(self.network.gradients(now.anchor, of_k, of_phi, of_v))
            if not steps:
                now = step(now, pairs[-1], gate)
            elif self.lagged:
                now = lagged_muon(now, pairs[-1], gate, steps, whole)
            else:
                now, weights = muon(now, pairs[-1], gate, steps)
                every.append(weights)
            now = _where(now, whole, now._replace(anchor=now.weights))
            after.append(now.anchor)
        answer, of_z = self.network.answer, features(z)
        if not self.lagged:
            return answer(by_token(every) if every else reader(memories, pairs, plan), z, of_z), now
        o = answer(fixed([m.anchor for m in memories]), z, of_z)
        if layout.closing is None:  # the token that completes a chunk reads what it has made
            closing = answer(fixed(after), z[:, :, -1:], of_z[:, :, -1:])
            return torch.cat([o[:, :, :-1], closing], dim=2), now
        closes = layout.closing[at.start : at.stop].repeat_interleave(H, 1).unsqueeze(-1)
        return torch.where(closes, answer(fixed(after), z, of_z), o), now

    @staticmethod
    def _rows(state: MemoryState) -> Memory:
        anchor, weights, momentum = ([w.flatten(0, 1) for w in group] for group in (state.anchor, state.weights, state.momentum))
        return Memory(anchor, weights, momentum, state.pending.flatten())

    def _check(self, q: Tensor, k: Tensor, v: Tensor, log_theta: Tensor | None, gamma: Tensor | None) -> None:
        if q.dim() != 4 or k.shape != q.shape or v.dim() != 4 or v.shape[:3] != q.shape[:3]:
            raise ShapeError(
                "q and k [B, T, H, K] and v [B, T, H, V] expected; "
                f"received {', '.join(str([*x.shape]) for x in (q, k, v))}. Time comes before heads."
            )
        if self.network.residual and v.shape[-1] != k.shape[-1]:
            raise ShapeError(f"A memory with a residual has values as wide as keys; received {v.shape[-1]} and {k.shape[-1]}.")
        if (log_theta is not None) != self.momentum:
            raise ShapeError(
                f"log_theta belongs to momentum; received momentum={self.momentum} and {'no ' if self.momentum else ''}it."
            )
        if (1 if gamma is None else gamma.shape[-1]) != self.window:
            received = "none" if gamma is None else [*gamma.shape]
            raise ShapeError(f"gamma [B, T, H, c] for a window of {self.window} expected; received {received}.")


def _known(rows: Tensor | bool) -> Tensor | bool:
    """Whether all or none are True, where looking is possible (eager): what is the same for all rows needs no choice."""
    if isinstance(rows, bool) or torch.compiler.is_compiling():
        return rows
    return True if bool(rows.all()) else rows if bool(rows.any()) else False


def _where(now: Memory, rows: Tensor | bool, new: Memory) -> Memory:
    rows = _known(rows)
    return now.where(rows, new) if isinstance(rows, Tensor) else new if rows else now
