"""Softmax attention inside a sliding window, in blocks of queries: never a T × T matrix."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 16
"""Fewest queries of a block: below, the products are too small to be worth a call."""


def window_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    sequence: Tensor,
    *,
    before: int,
    after: int = 0,
    shared: tuple[Tensor, Tensor, Tensor] | None = None,
) -> Tensor:
    r"""o_i = Σ_j softmax_j(q_i·k_j / √K) v_j over the columns j of the query's own sequence with i − before ≤ j ≤ i + after.

    Args:
        q: [B, H, T, K]. keys, values: [B, H, C + T, K], of which the last T columns are the queries' own.
        sequence: int64 [B or 1, C + T], ≥ 0, or −1 for columns that nobody needs: those see each other, so that no row is empty.
        before, after: how far a query sees.
        shared: keys, values [B, H, G, K] and bool [B, G]: columns that every query sees too, under the same softmax.

    Returns [B, H, T, K]. A block of b = max(BLOCK, before + after) queries reads b + before + after columns, so that time and
    memory are O(T (before + after + G) K H).
    """
    T, columns = q.shape[2], keys.shape[2]
    block = min(T, max(BLOCK, before + after))
    N = -(-T // block)
    left, right = before - (columns - T), after + N * block - T
    span = before + block + after
    keys, values = (_windows(F.pad(part, (0, 0, left, right)), span, block) for part in (keys, values))
    queries = F.pad(q, (0, 0, 0, N * block - T)).unflatten(2, (N, block)).transpose(1, 2).flatten(0, 1)
    names = F.pad(sequence, (left, right), value=-1).unfold(1, span, block)
    own = names[..., before : before + block]
    distance = torch.arange(span, device=q.device) - before - torch.arange(block, device=q.device).unsqueeze(1)
    attend = (distance >= -before) & (distance <= after) & (own.unsqueeze(-1) == names.unsqueeze(-2))
    attend = attend.expand(q.shape[0], -1, -1, -1)
    if shared is not None:
        more_keys, more_values, seen = shared
        keys, values = (
            torch.cat([part, more.repeat_interleave(N, dim=0)], dim=2)
            for part, more in ((keys, more_keys), (values, more_values))
        )
        attend = torch.cat([attend, seen[:, None, None].expand(-1, N, block, -1)], dim=-1)
    y = F.scaled_dot_product_attention(queries, keys, values, attn_mask=attend.flatten(0, 1).unsqueeze(1))
    return y.unflatten(0, (-1, N)).transpose(1, 2).flatten(2, 3)[:, :, :T]


def _windows(x: Tensor, span: int, step: int) -> Tensor:
    """[B, H, C, K] -> [B · N, H, span, K], a window every `step` columns."""
    return x.unfold(2, span, step).permute(0, 2, 1, 4, 3).flatten(0, 1)


def pairs(T: int, before: int, after: int = 0) -> int:
    """Scores that `window_attention` computes for T queries, those it masks included."""
    block = min(T, max(BLOCK, before + after))
    return -(-T // block) * block * (block + before + after)
