r"""The gated delta rule in chunks: one triangular inverse a chunk, batched matrix products, and one recurrence over chunk states.

In a chunk of C tokens let b_i be the sum of the log gates from its first token to token i, Γ_ij = e^{b_i - b_j} for j ≤ i, and
S the state before it. What token i writes, k_i u_iᵀ, corrects what S and the tokens before it in the chunk answer to k_i:

    u_i = β_i (v_i - e^{b_i} Sᵀ k_i - Σ_{j<i} Γ_ij (k_iᵀ k_j) u_j)
    (I + L) U = diag(β) (V - diag(e^b) K S),     L_ij = β_i Γ_ij k_iᵀ k_j below the diagonal

(the UT transform), so that with W = (I + L)⁻¹ diag(β e^b) K (the WY representation)

    U  = (I + L)⁻¹ diag(β) V - W S
    o_i = Σ_{j≤i} P_ij u_j + (scale · e^{b_i} q_i)ᵀ S,     P_ij = scale · Γ_ij q_iᵀ k_j
    S' = e^{b_C} S + Σ_j (e^{b_C - b_j} k_j) u_jᵀ

and only U and S' go from chunk to chunk, by two products. The inverse is that of a product of contractions where keys have
length 1 and β ≤ 2, so its entries are bounded and it is taken as it stands. A gate of -inf restarts the sequence, exactly.

Scaled queries and β k are *readers*: both read the state and the chunk in the same way, the former into o, the latter into u;
they are kept in one tensor X [M, 2C, K]. The gradient of the gates is closed as in `gated_linear_chunks`: with
D = X ∘ dX (both readers) - k ∘ dk, k here only in what it writes, dg_i = Σ_{j≥i} D_j + Σ S' ∘ dS', chunk by chunk.
Yang et al. 2024, arXiv 2406.06484 and 2412.06464. Axes as in `chunks`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from instar.kernels.chunks import join, ones, split
from instar.kernels.gated_linear_pairs import decays


class ChunkedDeltaRule(torch.autograd.Function):
    """(q, k, v, beta, g, state, scale, chunk) -> (o, state after the last token).

    q, k [B, T, H, K], v [B, T, H, V], beta and g [B, T, H, 1], g ≤ 0 or None, state [B, H, K, V], all of one dtype. `chunk` is a
    power of two.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor | None, state: Tensor, scale: float, chunk: int
    ) -> tuple[Tensor, Tensor]:
        (B, T, H, K), V, N, C = q.shape, v.shape[-1], -(-q.shape[1] // chunk), chunk
        q, k, v, beta = (split(x, N, C) for x in (q, k, v, beta))
        X = torch.cat([q * scale, k * beta], dim=1)
        pairs = torch.bmm(X, k.mT)
        decay: Tensor | None = None  # Γ
        A: Tensor | None = None  # e^b
        Z: Tensor | None = None  # e^{b_C - b}
        alpha: Tensor | None = None
        if g is not None:
            alpha = split(g, N, C).exp()
            decay, A, Z = decays(alpha)
        _see(pairs, decay)
        P, L = pairs[:, :C], pairs[:, C:]
        identity = torch.eye(C, dtype=q.dtype, device=q.device).expand(L.shape)
        inverse = torch.linalg.solve_triangular(L, identity, upper=False, unitriangular=True)
        readers = X if A is None else (X.view(-1, 2, C, K) * A.unsqueeze(1)).flatten(1, 2)
        keys = k if Z is None else k * Z
        U, W = torch.bmm(inverse, v * beta), torch.bmm(inverse, readers[:, C:])
        states = q.new_empty(N + 1, B * H, K, V)
        states[0] = state.reshape(B * H, K, V)
        for n in range(N):
            at = slice(n * B * H, (n + 1) * B * H)
            U[at] = torch.baddbmm(U[at], W[at], states[n], alpha=-1.0)  # FLOP counters do not see baddbmm_
            states[n + 1] = torch.baddbmm(states[n] if A is None else A[at, -1:] * states[n], keys[at].mT, U[at])
        o = torch.baddbmm(torch.bmm(P, U), readers[:, :C], states[:-1].view(-1, K, V))
        ctx.save_for_backward(X, k, v, beta, alpha, decay, A, Z, P, inverse, W, U, states)
        ctx.scale, ctx.shape = scale, (B, T, H)
        return join(o, B, T, H), states[N].view(B, H, K, V).clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do: Tensor, d_state: Tensor) -> tuple[Tensor | None, ...]:
        X, k, v, beta, alpha, decay, A, Z, P, inverse, W, U, states = ctx.saved_tensors
        (B, T, H), (M, C, K), V, N = ctx.shape, k.shape, v.shape[-1], states.shape[0] - 1
        do = split(do, N, C)
        keys = k if Z is None else k * Z
        d_states = torch.empty_like(states)  # of the state before chunk n; the last one of the final state
        d_states[N] = d_state.reshape(B * H, K, V)
        q = X[:, :C]
        d_states[:-1].view(M, K, V).copy_(torch.bmm((q if A is None else q * A).mT, do))
        dU = torch.bmm(P.mT, do)
        for n in reversed(range(N)):
            at = slice(n * B * H, (n + 1) * B * H)
            after = d_states[n + 1]
            dU[at].baddbmm_(keys[at], after)
            before = d_states[n].add_(after) if A is None else d_states[n].addcmul_(after, A[at, -1:])
            before.baddbmm_(W[at].mT, dU[at], alpha=-1.0)
        d_after = d_states[1:].view(M, K, V)
        dV = torch.bmm(inverse.mT, dU)  # of β v, and of -1 · all that is subtracted from it
        dY = torch.cat([do, -dV], dim=1)
        d_pairs = torch.bmm(dY, U.mT)
        _see(d_pairs, decay)
        d_pairs[:, C:].diagonal(0, 1, 2).zero_()
        dX, dk = torch.bmm(dY, states[:-1].view(M, K, V).mT), torch.bmm(U, d_after.mT)
        if A is not None and Z is not None:
            dX.view(M, 2, C, K).mul_(A.unsqueeze(1))
            dk.mul_(Z)
        dX.baddbmm_(d_pairs, k)
        dk.baddbmm_(d_pairs.mT, X)
        dg: Tensor | None = None
        if alpha is not None and ctx.needs_input_grad[4]:
            D = (X * dX).view(M, 2, C, K).sum(dim=(1, 3)) - (k * dk).sum(-1)
            end = (states[1:].view(M, K, V) * d_after).sum(dim=(1, 2))
            dg = torch.matmul(ones(C, D).T, D.unsqueeze(-1)) + end.view(M, 1, 1)
            dg = join(dg.masked_fill_(alpha == 0, 0.0), B, T, H)  # a gate of -inf: what is left is rounding
        dq, d_write = dX[:, :C] * ctx.scale, dX[:, C:]
        d_beta = ((k * d_write).sum(-1) + (v * dV).sum(-1)).unsqueeze(-1)
        found = (join(x, B, T, H) for x in (dq, dk.addcmul_(beta, d_write), beta * dV, d_beta))
        return *found, dg, d_states[0].view(B, H, K, V).clone(), None, None


def _see(pairs: Tensor, decay: Tensor | None) -> None:
    """Pairs [M, 2C, C] of both readers and the tokens of the chunk: weighed by Γ, and zero where the token comes later."""
    M, _, C = pairs.shape
    if decay is None:
        pairs.view(M, 2, C, C).tril_()
    else:
        pairs.view(M, 2, C, C).mul_(decay.unsqueeze(1))
