"""Attention of one query for each sequence, over ragged caches: a compiled kernel where it was built, torch everywhere.

Sanovar, Bharadwaj, St. Amant, Ruehle, Rajmohan 2024, "Lean Attention: Hardware-Aware Scalable Attention Mechanism for the
Decode-Phase of Transformers" (arXiv 2405.10480).
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from instar.errors import BuildError, ShapeError
from instar.kernels import decode_attention_compiled as compiled
from instar.kernels import native
from instar.kernels.decode_attention_partial import Partial, merge_partials
from instar.kernels.decode_attention_plan import Counts, DecodePlan
from instar.kernels.decode_attention_schedule import Schedule
from instar.kernels.decode_attention_torch import Scales, by_segments, grouped

__all__ = ["DecodePlan", "Partial", "attend", "decode_attention", "merge_partials"]

Form = Literal["auto", "compiled", "torch", "segments"]
FORMS = get_args(Form)
Layout = Literal["bhld", "blhd"]
LAYOUTS = get_args(Layout)
FEW = 2**13
"""Keys of float32, over all heads, up to which one call of SDPA is as fast, where one call serves all sequences."""
WORTH_A_HINT = 2**16
"""Keys, over all heads, from which the compiled form would be missed."""


def decode_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Counts,
    *,
    scale: float | None = None,
    schedule: Schedule = "stream-k",
    tile: int | None = None,
    workers: int | None = None,
    page_table: Tensor | None = None,
    return_lse: bool = False,
    starts: Counts | None = None,
    layout: Layout = "bhld",
    scales: Scales | None = None,
    form: Form = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    r"""o_b = Σ_{starts_b ≤ j < lengths_b} softmax_j(scale · ⟨q_b, k_bj⟩) v_bj, exactly, for each query head.

    Args:
        q: [B, H, K] or [B, H, 1, K].
        k_cache, v_cache: [B, Hkv, L, K] and [B, Hkv, L, V], Hkv a divisor of H: each serves H / Hkv neighbouring query heads and
            is read once for all of them. With `layout` "blhd" [B, L, Hkv, ·]. With a page table [pages, Hkv, page size, ·] or
            [pages, page size, Hkv, ·].
        lengths: [B], keys of each sequence. What lies behind, even NaN, is never read.
        scale: None is 1 / √K.
        schedule, tile, workers, page_table, starts: as in `DecodePlan.of`. Every schedule gives the same but for rounding.
        scales: of int8 keys and int8 values (`quantised_rows.quantise_rows`): float32, one for each row of the caches, in their
            shape without the last axis.
        return_lse: also the log-sum-exp [B, H] of the scaled scores, float32 or better; see `Partial` for what it is good for.
        form: "compiled" (`instar kernels build`; float32, bfloat16, float16 and int8 on the CPU, widths in multiples of 32);
            "torch", SDPA sequence by sequence; "segments", the plan run segment by segment in torch: the reference; "auto" is
            the first that applies of the first two, and SDPA where there is little of float32 to read, for all at once.

    Returns the output in the shape of q with V for K and its type; sums are in float32 or better. A sequence without keys gives 0
    and a log-sum-exp of -∞. Keys and values have one type, which is that of q, a narrower one, or int8 with scales.
    Raises ShapeError, and BuildError for a compiled form that is not there. Differentiable, by torch's forms.
    Reads Σ_b (lengths_b - starts_b) · Hkv · (K + V) numbers; scratch of H / Hkv · (V + 2) float32 for each part of a cut output.
    Differs from the paper: one parallel loop over workers, a barrier and a second one over the cut outputs, instead of a host
    block that waits; tiles of 64 keys, that suit a CPU's first-level cache.
    """
    size = None
    if page_table is not None and k_cache.dim() == 4:
        size = k_cache.shape[2 if layout == "bhld" else 1]
    heads = k_cache.shape[1 if layout == "bhld" else 2] if k_cache.dim() == 4 else 0
    if heads < 1:
        raise ShapeError(f"A cache of keys expects four dimensions and at least one head; received {tuple(k_cache.shape)}.")
    made = DecodePlan.of(
        lengths,
        heads,
        starts=starts,
        schedule=schedule,
        tile=tile,
        workers=workers,
        page_table=page_table,
        page_size=size,
    )
    out, lse = attend(made, q, k_cache, v_cache, scale=scale, layout=layout, scales=scales, form=form, return_lse=return_lse)
    return out if lse is None else (out, lse)


def attend(
    plan: DecodePlan,
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    *,
    scale: float | None = None,
    layout: Layout = "bhld",
    scales: Scales | None = None,
    form: Form = "auto",
    return_lse: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """`decode_attention` with a plan that was made before: one plan a token serves all layers of a model."""
    if layout not in LAYOUTS or form not in FORMS:
        raise ShapeError(f"layout is one of {', '.join(LAYOUTS)}, form of {', '.join(FORMS)}; received '{layout}' and '{form}'.")
    shape, q = q.shape, q.squeeze(2) if q.dim() == 4 and q.shape[2] == 1 else q
    keys, values = (k_cache, v_cache) if layout == "bhld" else (k_cache.transpose(1, 2), v_cache.transpose(1, 2))
    if scales is not None and layout == "blhd":
        scales = scales[0].transpose(1, 2), scales[1].transpose(1, 2)
    _validate(plan, q, keys, values, scales)
    scale = q.shape[2] ** -0.5 if scale is None else scale
    library = None
    few = plan.uniform and plan.reads <= FEW and keys.dtype == torch.float32  # narrow types: up to ten times as slow by SDPA
    if form == "auto" and few and not return_lse:
        form = "torch"
    if form in ("auto", "compiled") and compiled.takes(q, keys, values):
        library = native.library()
        if library is None and plan.reads >= WORTH_A_HINT:
            native.hint()
    elif form == "compiled":
        raise BuildError(
            "The compiled form takes float32, bfloat16, float16 and int8 on the CPU, widths in multiples of "
            f"{compiled.BLOCK} whose numbers lie together, and no gradients; received {q.dtype} over {keys.dtype} "
            f"{tuple(keys.shape)} with strides {keys.stride()}."
        )
    if form == "compiled" and library is None:
        raise BuildError("The compiled form is not built for this machine: `instar kernels build`.")
    if library is not None:
        out, lse = compiled.run(library, plan, q, keys, values, scales, scale, return_lse)
    else:
        with torch.autocast(q.device.type, enabled=False):  # types and sums are those that are said, as in the compiled form
            if form == "segments":
                out, lse = by_segments(plan, q, keys, values, scales, scale)
            else:
                out, lse = grouped(plan, q, keys, values, scales, scale, return_lse)
    return out.view(*shape[:-1], values.shape[3]), lse if return_lse else None


def _validate(plan: DecodePlan, q: Tensor, keys: Tensor, values: Tensor, scales: Scales | None) -> None:
    if q.dim() != 3 or keys.dim() != 4 or values.dim() != 4 or keys.shape[:3] != values.shape[:3] or q.shape[2] != keys.shape[3]:
        raise ShapeError(
            "decode_attention expects q [B, H, K] or [B, H, 1, K], keys [B, Hkv, L, K] and values [B, Hkv, L, V]; received "
            f"{tuple(q.shape)}, {tuple(keys.shape)} and {tuple(values.shape)}."
        )
    B, H, K = q.shape
    if len(plan.lengths) != B or keys.shape[1] != plan.kv_heads or H % plan.kv_heads or min(H, K, values.shape[3]) < 1:
        raise ShapeError(
            f"The plan is of {len(plan.lengths)} sequences and {plan.kv_heads} key heads, which must divide the query heads; "
            f"received {B} sequences, {keys.shape[1]} key heads and {H} query heads of width {K}."
        )
    if keys.dtype == torch.int8 or scales is not None:
        _validate_scales(keys, values, scales)
    floats = [part.is_floating_point() and part.dtype.itemsize > 1 for part in (q, keys)]  # torch promotes no floats of 8 bits
    known = floats[0] and (floats[1] or keys.dtype == torch.int8)
    if keys.dtype != values.dtype or not known or torch.promote_types(q.dtype, keys.dtype) != q.dtype:
        raise ShapeError(
            "decode_attention expects keys and values of one floating type, or int8, and q of that type or a wider one; received "
            f"{q.dtype}, {keys.dtype} and {values.dtype}."
        )
    if not q.device == keys.device == values.device:
        raise ShapeError(f"q, keys and values lie on {q.device}, {keys.device} and {values.device}: one device is expected.")
    if plan.pages is None:
        if keys.shape[0] < B or plan.longest > keys.shape[2]:
            raise ShapeError(f"{B} sequences of up to {plan.longest} keys do not fit a cache of {tuple(keys.shape)}.")
    elif plan.page_size != keys.shape[2] or plan.last_page >= keys.shape[0]:
        raise ShapeError(
            f"The page table speaks of pages of {plan.page_size} keys and of page {plan.last_page}; the cache has "
            f"{keys.shape[0]} pages of {keys.shape[2]}."
        )


def _validate_scales(keys: Tensor, values: Tensor, scales: Scales | None) -> None:
    parts = () if scales is None else scales
    fits = len(parts) == 2 and all(
        part.shape == cache.shape[:3] and part.dtype == torch.float32 and part.device == cache.device
        for part, cache in zip(parts, (keys, values), strict=True)
    )
    if not fits or keys.dtype != torch.int8 or values.dtype != torch.int8:
        shapes = ", ".join(f"{tuple(part.shape)} of {part.dtype}" for part in parts) or "none"
        raise ShapeError(
            f"Scales go with int8 keys and values, and those with two scales of float32 {tuple(keys.shape[:3])} beside them; "
            f"received {keys.dtype} and {values.dtype} with {shapes}."
        )
