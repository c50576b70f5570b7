"""The torch forms of attention of one query: the plan segment by segment, and SDPA with the heads of a group as query rows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from instar.kernels.decode_attention_partial import Partial, merge_partials, partial
from instar.kernels.decode_attention_plan import DecodePlan
from instar.kernels.quantised_rows import dequantise_rows

Scales = tuple[Tensor, Tensor]
"""Of int8 keys and of int8 values, [rows or pages, Hkv, columns] each."""


def by_segments(
    plan: DecodePlan, q: Tensor, keys: Tensor, values: Tensor, scales: Scales | None, scale: float
) -> tuple[Tensor, Tensor]:
    """The plan as it stands: every segment's partial result, merged for each output. Shapes as `grouped`."""
    caches = _with_scales(keys, values, scales)
    B, H, K = q.shape
    G, wide = H // plan.kv_heads, torch.promote_types(q.dtype, torch.float32)
    queries = q.view(B, plan.kv_heads, G, K)
    found: dict[int, list[Partial]] = {}
    for output, start, stop, _ in plan.segments.tolist():
        row, head = divmod(output, plan.kv_heads)
        k, v = (_read(plan, cache, wide, row, start, stop)[head] for cache in caches)
        found.setdefault(output, []).append(partial(queries[row, head], k, v, scale))
    nothing = partial(queries[:0, 0], queries[:0, 0, :0], q.new_empty(0, 0, values.shape[3]), scale)
    out = nothing.a.new_zeros(B * plan.kv_heads, G, values.shape[3])
    lse = nothing.m.new_full((B * plan.kv_heads, G), -torch.inf)
    for output, parts in found.items():
        out[output], lse[output] = merge_partials(parts).output()
    return out.view(B, H, values.shape[3]).to(q.dtype), lse.view(B, H)


def grouped(
    plan: DecodePlan, q: Tensor, keys: Tensor, values: Tensor, scales: Scales | None, scale: float, want_lse: bool
) -> tuple[Tensor, Tensor | None]:
    """Sequence by sequence over its own keys; the whole batch at once where all have as many. Nothing beyond is read.

    q [B, H, K], keys and values [rows or pages, Hkv, columns, width] -> [B, H, V] and, if wanted, the log-sum-exp [B, H].
    """
    caches = _with_scales(keys, values, scales)
    B, H, K = q.shape
    V, wide = values.shape[3], torch.promote_types(q.dtype, torch.float32)
    queries = q.view(B, plan.kv_heads, H // plan.kv_heads, K)
    if plan.uniform and not plan.empty:
        part = slice(int(plan.starts[0]), int(plan.lengths[0]))
        k, v = (_whole(cache[:B, :, part], None if of is None else of[:B, :, part], wide) for cache, of in caches)
        out, level = _attend(queries, k, v, scale, want_lse)
        return out.reshape(B, H, V), None if level is None else level.reshape(B, H)
    outs, levels = [], []
    for row, (start, stop) in enumerate(zip(plan.starts.tolist(), plan.lengths.tolist(), strict=True)):
        k, v = (_read(plan, cache, wide, row, start, max(start, stop)) for cache in caches)
        out, level = _attend(queries[row : row + 1], k.unsqueeze(0), v.unsqueeze(0), scale, want_lse)
        outs.append(out)
        levels.append(level)
    if not outs:
        return q.new_zeros(0, H, V), q.new_zeros(0, H).float() if want_lse else None
    lse = torch.cat(levels).view(B, H) if want_lse else None  # type: ignore[arg-type]
    return torch.cat(outs).view(B, H, V), lse


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float, want_lse: bool) -> tuple[Tensor, Tensor | None]:
    """[B, Hkv, G, K] over [B, Hkv, N, ·]: SDPA reads each key once for all G; it keeps its log-sum-exp to itself."""
    if want_lse or k.shape[2] == 0:
        out, level = partial(q, k, v, scale).output()
        return out.to(q.dtype), level
    wide = torch.promote_types(q.dtype, k.dtype)  # what stood there as integers is not rounded to a type that is narrower
    return F.scaled_dot_product_attention(q.to(wide), k.to(wide), v.to(wide), scale=scale).to(q.dtype), None


_Cache = tuple[Tensor, Tensor | None]


def _with_scales(keys: Tensor, values: Tensor, scales: Scales | None) -> tuple[_Cache, _Cache]:
    return (keys, None if scales is None else scales[0]), (values, None if scales is None else scales[1])


def _read(plan: DecodePlan, cache: _Cache, dtype: torch.dtype, row: int, start: int, stop: int) -> Tensor:
    """[Hkv, N, width]: the columns of one sequence, as numbers."""
    numbers, scale = cache
    of = None if scale is None else _columns(plan, scale.unsqueeze(-1), row, start, stop).squeeze(-1)
    return _whole(_columns(plan, numbers, row, start, stop), of, dtype)


def _whole(numbers: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    return numbers if scale is None else dequantise_rows(numbers, scale, dtype)


def _columns(plan: DecodePlan, cache: Tensor, row: int, start: int, stop: int) -> Tensor:
    """[Hkv, N, width]: the columns of one sequence, its pages put together (a copy)."""
    if plan.pages is None:
        return cache[row, :, start:stop]
    size = plan.page_size
    first = start // size
    last = -(-stop // size) if stop > start else first
    chosen = torch.from_numpy(plan.pages[row, first:last]).to(cache.device)
    return cache[chosen].transpose(0, 1).flatten(1, 2)[:, start - first * size : stop - first * size]
