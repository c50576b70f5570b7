"""The gated delta rule, token by token: the oracle of the chunked form, and the decoding step."""

from __future__ import annotations

import torch
from torch import Tensor


def recurrent(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor | None, state: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    r"""S_t = e^{g_t} (I - β_t k_t k_tᵀ) S_{t-1} + β_t k_t v_tᵀ and o_t = scale · q_tᵀ S_t.

    q, k [B, T, H, K], v [B, T, H, V], beta and g [B, T, H, 1], g ≤ 0 or None for 0, state [B, H, K, V].
    Returns o [B, T, H, V] and the state after the last token. O(T K V) time, one token after the other.
    Schlag et al. 2021, arXiv 2102.11174 (g = 0); Yang et al. 2024, arXiv 2412.06464.
    """
    S, outputs = state, []
    for t in range(q.shape[1]):
        if g is not None:
            S = g[:, t].exp().unsqueeze(-1) * S  # forget
        known = (k[:, t].unsqueeze(-2) @ S).squeeze(-2)  # what the state answers to this key
        S = torch.addcmul(S, k[:, t].unsqueeze(-1), (beta[:, t] * (v[:, t] - known)).unsqueeze(-2))  # write the difference
        outputs.append((q[:, t] * scale).unsqueeze(-2) @ S)
    return (torch.cat(outputs, dim=2).transpose(1, 2) if outputs else v), S
