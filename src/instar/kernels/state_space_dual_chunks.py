r"""The state-space dual of Mamba-2 in chunks: the block decomposition of its semiseparable matrix.

In a chunk of C tokens let b_i be the sum of the log gates of a head from its first token to token i, Γ_ij = e^{b_i - b_j} for
j ≤ i, and S the state before it. All heads of a group share keys B and queries C:

    y_i = Σ_{j≤i} Γ_ij (C_iᵀ B_j) x_j + e^{b_i} Sᵀ C_i        diagonal block, and what the earlier blocks left
    S'  = e^{b_C} S + Σ_j B_j (e^{b_C - b_j} x_j)ᵀ

C Bᵀ is taken once for a group, and so are all products with states, whose values are those of all its heads side by side. A gate
of -inf restarts the sequence, exactly. The gradient of the gates is closed: with D_i = y_iᵀ dy_i - x_iᵀ dx_i for each head,
dg_i = Σ_{j≥i} D_j + Σ S' ∘ dS', chunk by chunk.

Dao & Gu 2024, "Transformers are SSMs" (arXiv 2405.21060), section 6. Axes as in `chunks`, rows M = N · B · G of groups, R heads
of a group: tensors are [M, C, N] (N also the width of B and C) and [M, C, R, V].
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from instar.kernels.chunks import join, ones, split
from instar.kernels.gated_linear_pairs import decays


class ChunkedStateSpace(torch.autograd.Function):
    """(x, B, C, g, state, chunk) -> (y, state after the last token).

    x [B, T, H, V], B and C [B, T, G, K] with G a divisor of H, g [B, T, H, 1] ≤ 0, state [B, H, K, V], all of one dtype. `chunk`
    is a power of two.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, keys: Tensor, queries: Tensor, g: Tensor, state: Tensor, chunk: int
    ) -> tuple[Tensor, Tensor]:
        (B, T, H, V), (G, K), n_chunks = x.shape, keys.shape[2:], -(-x.shape[1] // chunk)
        R = H // G
        x = _grouped(x, G, n_chunks, chunk)
        keys, queries = split(keys, n_chunks, chunk), split(queries, n_chunks, chunk)
        M = keys.shape[0]
        alpha = split(g.reshape(B, T, G, R), n_chunks, chunk).exp()  # [M, C, R]
        decay, A, Z = (y.unflatten(0, (M, R)) for y in decays(alpha.transpose(1, 2).reshape(M * R, chunk, 1)))
        A, Z = (y.transpose(1, 2) for y in (A, Z))  # [M, C, R, 1]
        pairs = torch.bmm(queries, keys.mT)
        states = x.new_empty(n_chunks + 1, B * G, K, R * V)
        states[0] = state.reshape(B, G, R, K, V).transpose(2, 3).reshape(B * G, K, R * V)
        states[1:].view(M, K, R * V).copy_(torch.bmm(keys.mT, (x * Z).flatten(2)))
        whole = A[:, -1].reshape(n_chunks, B * G, 1, R, 1)
        for n in range(n_chunks):
            states[n + 1].view(B * G, K, R, V).addcmul_(states[n].view(B * G, K, R, V), whole[n])
        y = torch.bmm(queries, states[:-1].view(M, K, R * V)).view(M, chunk, R, V) * A
        for h in range(R):
            y[:, :, h].add_(torch.bmm(pairs * decay[:, h], x[:, :, h]))
        ctx.save_for_backward(x, keys, queries, alpha, decay, A, Z, pairs, states, y)
        ctx.shape = B, T, H
        last = states[n_chunks].view(B, G, K, R, V).transpose(2, 3).reshape(B, H, K, V)
        return _ungrouped(y, B, T, H), last.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, d_state: Tensor) -> tuple[Tensor | None, ...]:
        x, keys, queries, alpha, decay, A, Z, pairs, states, y = ctx.saved_tensors
        (B, T, H), (M, C, R, V), K = ctx.shape, x.shape, keys.shape[-1]
        n_chunks, G = states.shape[0] - 1, H // R
        dy = _grouped(dy, G, n_chunks, C)
        read = (dy * A).flatten(2)
        d_states = torch.empty_like(states)  # of the state before chunk n; the last one of the final state
        d_states[n_chunks] = d_state.reshape(B, G, R, K, V).transpose(2, 3).reshape(B * G, K, R * V)
        d_states[:-1].view(M, K, R * V).copy_(torch.bmm(queries.mT, read))
        whole = A[:, -1].reshape(n_chunks, B * G, 1, R, 1)
        for n in reversed(range(n_chunks)):
            d_states[n].view(B * G, K, R, V).addcmul_(d_states[n + 1].view(B * G, K, R, V), whole[n])
        before, d_after = states[:-1].view(M, K, R * V), d_states[1:].view(M, K, R * V)
        dx = torch.bmm(keys, d_after).view(M, C, R, V) * Z
        d_pairs = torch.zeros_like(pairs)
        for h in range(R):
            d_pairs.addcmul_(torch.bmm(dy[:, :, h], x[:, :, h].mT), decay[:, h])
            dx[:, :, h].add_(torch.bmm((pairs * decay[:, h]).mT, dy[:, :, h]))
        d_queries = torch.baddbmm(torch.bmm(read, before.mT), d_pairs, keys)
        d_keys = torch.baddbmm(torch.bmm((x * Z).flatten(2), d_after.mT), d_pairs.mT, queries)
        dg: Tensor | None = None
        if ctx.needs_input_grad[3]:
            D = (y * dy).sum(-1) - (x * dx).sum(-1)
            end = (states[1:] * d_states[1:]).view(M, K, R, V).sum(dim=(1, 3)).unsqueeze(1)
            dg = torch.matmul(ones(C, D).T, D) + end
            dg = join(dg.masked_fill_(alpha == 0, 0.0), B, T, G).reshape(B, T, H, 1)  # a gate of -inf: what is left is rounding
        d_first = d_states[0].view(B, G, K, R, V).transpose(2, 3).reshape(B, H, K, V).clone()
        return _ungrouped(dx, B, T, H), join(d_keys, B, T, G), join(d_queries, B, T, G), dg, d_first, None


def _grouped(x: Tensor, G: int, N: int, C: int) -> Tensor:
    """[B, T, H, V] to [N · B · G, C, H / G, V]."""
    H, V = x.shape[2:]
    return split(x.reshape(*x.shape[:2], G, -1), N, C).unflatten(-1, (H // G, V))


def _ungrouped(x: Tensor, B: int, T: int, H: int) -> Tensor:
    """The inverse of `_grouped`."""
    return join(x.flatten(2), B, T, H // x.shape[2]).reshape(B, T, H, x.shape[3])
