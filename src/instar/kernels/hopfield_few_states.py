"""The association of few states with many patterns, without projecting the patterns: what pools a large bag.

With keys k_i = W_K y_i + b_K and values v_i = W_V z_i + b_V of a head,

    β ⟨ξ, k_i⟩ = ⟨β W_Kᵀ ξ, y_i⟩ + a constant, which softmax does not see,    Σ p_i k_i = W_K Σ p_i y_i + b_K

so that states are projected, not patterns: O((n + 1) S H N D) time instead of O(N D² + (n + 1) S N D), and no keys in memory.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from instar.kernels.hopfield import Beta, Eps, Steps, head_scale, iterate, seeing


def associate_few(
    q: Tensor,
    stored: Tensor,
    projection: Tensor,
    key_weight: Tensor,
    key_bias: Tensor | None,
    value_weight: Tensor,
    value_bias: Tensor | None,
    *,
    beta: Beta,
    steps: Steps,
    eps: Eps,
    attend: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """What `instar.kernels.hopfield.associate` gives for the projected patterns, [B, H, S, V].

    q [B, H, S, K]; stored y [B, N, D], projection z [B, N, E]; weights [H, K, D] and [H, V, E], biases [H, K] and [H, V].
    """
    B, H, S, _ = q.shape
    scale, seen = head_scale(beta, q), seeing(attend, q, stored.shape[1])
    y, z = stored.unsqueeze(1), projection.unsqueeze(1)
    if attend is not None and attend.shape[1:3] != (1, 1):
        attend = attend.expand(B, H, S, -1).flatten(1, 2).unsqueeze(1)

    def read(state: Tensor, patterns: Tensor, drop: float = 0.0) -> Tensor:
        """Mean patterns [B, H, S, D], each weighted by its state's association."""
        looks = ((state * scale) @ key_weight).flatten(1, 2).unsqueeze(1)
        found = F.scaled_dot_product_attention(looks, y, patterns, attn_mask=attend, dropout_p=drop, scale=1.0)
        return found.squeeze(1).unflatten(1, (H, S))

    def update(state: Tensor, live: Tensor | None) -> Tensor:
        return _through(read(state, y), key_weight, key_bias)

    state, _ = iterate(q, update, seen, steps=steps, eps=eps)
    found = _through(read(state, z, dropout), value_weight, value_bias)
    return found if attend is None and stored.shape[1] else found.masked_fill(~seen.unsqueeze(-1), 0.0)


def _through(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """[B, H, S, D] -> [B, H, S, K]"""
    found = x @ weight.mT
    return found if bias is None else found + bias.unsqueeze(1)
