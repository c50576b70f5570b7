"""The recurrence of gated linear attention, token by token: the oracle of every faster form, and the decoding step."""

from __future__ import annotations

import torch
from torch import Tensor


def recurrent(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, state: Tensor, scale: float, reset: Tensor | None
) -> tuple[Tensor, Tensor]:
    r"""S_t = diag(e^{g_t}) S_{t-1} + k_t v_tᵀ and o_t = scale · q_tᵀ S_t; before a token with a reset, S is zero.

    q, k [B, T, H, K], v [B, T, H, V], g [B, T, H, K or 1] ≤ 0 or None for 0, state [B, H, K, V], reset bool [B, T].
    Returns o [B, T, H, V] and the state after the last token. O(T K V) time, one token after the other.
    Yang et al. 2023, arXiv 2312.06635.
    """
    S, outputs = state, []
    for t in range(q.shape[1]):
        if reset is not None:
            S = S.masked_fill(reset[:, t, None, None, None], 0.0)
        if g is not None:
            S = g[:, t].exp().unsqueeze(-1) * S
        S = torch.addcmul(S, k[:, t].unsqueeze(-1), v[:, t].unsqueeze(-2))
        outputs.append((q[:, t] * scale).unsqueeze(-2) @ S)
    return (torch.cat(outputs, dim=2).transpose(1, 2) if outputs else v), S
