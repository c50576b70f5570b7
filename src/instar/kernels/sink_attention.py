"""SDPA with a sink: one more score that takes attention and gives no value."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def sink_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    sink: Tensor | None = None,
    *,
    attend: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """o_t = Σ_i exp(x_ti) v_i / (exp(sink) + Σ_i exp(x_ti)), x = q kᵀ · scale, by any kernel that SDPA chooses.

    Args:
        q: [B, H, T, K]; keys, values: [B, Hkv, C, K].
        sink: a finite logit for each head [H]; None is 0 for all.
        attend: bool [B or 1, H or 1, T, C], as SDPA takes it. causal: columns up to the query's own instead (C = T).
        scale: K^(−1/2) where it is None.

    The sink is a first column of value zero. Its key is zero, which scores 0; a learned logit stands in one more coordinate,
    which that column alone reads. Under `causal` a first query goes with it, so that the triangle stays one: SDPA's causal
    kernels serve, values and gradients, without a mask in memory. Keys and values are copied: for one query
    `eager_attention` is cheaper.
    """
    T, K = q.shape[2:]
    scale = K**-0.5 if scale is None else scale
    keys, values = F.pad(keys, (0, 0, 1, 0)), F.pad(values, (0, 0, 1, 0))
    if sink is not None:
        logit = (sink.to(q.dtype) / scale).view(1, -1, 1, 1).expand(*q.shape[:3], 1)
        first = torch.zeros_like(keys[..., :1])
        first[:, :, 0] = 1.0
        q, keys, values = torch.cat([q, logit], -1), torch.cat([keys, first], -1), F.pad(values, (0, 1))
    if causal:
        q = F.pad(q, (0, 0, 1, 0))
    elif attend is not None:
        attend = F.pad(attend, (1, 0), value=True)
    shared = keys.shape[1] != q.shape[1]
    y = F.scaled_dot_product_attention(q, keys, values, attn_mask=attend, is_causal=causal, scale=scale, enable_gqa=shared)
    return y[:, :, q.shape[2] - T :, :K]
