"""The plan of a decoding step from an attention mask, or from none."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from instar.kernels.decode_attention_plan import DecodePlan


def plan_of_mask(mask: Tensor, kv_heads: int) -> DecodePlan | None:
    """The plan of a mask [B, C] whose rows are runs of columns that are seen; None where a row has a hole or a bias.

    mask: True where a column is seen; or, of a mask that is added to scores, 0 there and less than -1e4 elsewhere. O(B C).
    """
    if mask.dtype != torch.bool:
        seen = mask == 0
        if not bool((seen | (mask < -1e4)).all()):
            return None
        mask = seen
    first = mask.int().argmax(1)
    count = mask.sum(1)
    end = torch.where(count == 0, first, mask.shape[1] - mask.flip(1).int().argmax(1))
    return DecodePlan.of(end, kv_heads, starts=first) if torch.equal(end - first, count) else None


def plan_of_all(rows: int, columns: int, kv_heads: int) -> DecodePlan:
    """The plan of rows that all see all columns: one a token for all layers, whoever asks."""
    return _of_all(rows, columns, kv_heads, torch.get_num_threads())


@functools.lru_cache(maxsize=4)
def _of_all(rows: int, columns: int, kv_heads: int, threads: int) -> DecodePlan:
    return DecodePlan.of([columns] * rows, kv_heads)
