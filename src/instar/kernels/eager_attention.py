"""Attention with its weights written out, for weights that no fused kernel knows: O(T C) memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Weigh = Callable[[Tensor], Tensor]
"""Scores [B, H, T, C], −∞ at columns that are not seen, to weights of the same shape."""


def eager_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    weigh: Weigh,
    *,
    attend: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """o = weigh(scores) V for q [B, H, T, K] and keys, values [B, Hkv, C, K]; arguments as `scores`."""
    if causal:
        attend = torch.ones(q.shape[2], keys.shape[2], dtype=torch.bool, device=q.device).tril()
    weights = weigh(scores(q, keys, attend, scale)).to(values.dtype)
    return (_grouped(weights, keys.shape[1]) @ values).view(*q.shape[:3], values.shape[3])


def scores(q: Tensor, keys: Tensor, attend: Tensor | None = None, scale: float | None = None) -> Tensor:
    """q kᵀ · scale [B, H, T, C], in float32 or better, −∞ where `attend` (broadcast to it) says no.

    scale: K^(−1/2) where it is None. Each key head serves H / Hkv neighbouring query heads; keys are not repeated.
    """
    B, H, T, K = q.shape
    scale = K**-0.5 if scale is None else scale
    found = (_grouped(q * scale, keys.shape[1]) @ keys.transpose(2, 3)).view(B, H, T, keys.shape[2])
    found = found.to(torch.promote_types(found.dtype, torch.float32))
    return found if attend is None else found.masked_fill(~attend, -torch.inf)


def _grouped(x: Tensor, kv_heads: int) -> Tensor:
    """[B, H, T, C] -> [B, Hkv, H / Hkv · T, C]: the query heads of a key head one below the other."""
    return x if x.shape[1] == kv_heads else x.unflatten(1, (kv_heads, -1)).flatten(2, 3)
