"""The delta rule, gated or not: one function for the recurrence and the chunked form.

Schlag, Irie, Schmidhuber 2021, "Linear Transformers Are Secretly Fast Weight Programmers" (arXiv 2102.11174); Yang, Wang, Zhang,
Shen, Kim 2024, "Parallelizing Linear Transformers with the Delta Rule over Sequence Length" (arXiv 2406.06484); Yang, Kautz,
Hatamizadeh 2024, "Gated Delta Networks: Improving Mamba2 with Delta Rule" (arXiv 2412.06464).
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from instar.errors import ShapeError
from instar.kernels.chunks import check, in_parts
from instar.kernels.delta_rule_chunks import ChunkedDeltaRule
from instar.kernels.delta_rule_reference import recurrent

Form = Literal["auto", "recurrent", "chunked"]
FORMS = get_args(Form)


def gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_gate: Tensor | None = None,
    *,
    scale: float | None = None,
    state: Tensor | None = None,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
    form: Form = "auto",
    chunk: int = 64,
) -> tuple[Tensor, Tensor]:
    r"""S_t = e^{g_t} (I - β_t k_t k_tᵀ) S_{t-1} + β_t k_t v_tᵀ,   o_t = scale · q_tᵀ S_t, for each head.

    Args:
        q, k: [B, T, H, K]. Keys should have length 1 (or less) and β lie in [0, 2]: otherwise the state itself may grow without
            bound, whatever the form.
        v: [B, T, H, V].
        beta: [B, T, H], the writing strength; at 1 the old answer to k_t is replaced by v_t, at 0 nothing is written.
        log_gate: g ≤ 0, [B, T, H]. -inf forgets all. None is no gate, the delta rule of Schlag et al.
        scale: None is 1 / √K.
        state: S before the first token, [B, H, K, V]; None is zero.
        mask: bool [B, T], False leaves a token out (it neither writes nor forgets).
        reset: bool [B, T], True drops the state before that token, exactly.
        form: "recurrent" token by token; "chunked"; "auto" the recurrence for one token, else chunks. Both are equal in values
            and gradients but for rounding; "recurrent" alone has second derivatives.
        chunk: C, a power of two; it changes speed and rounding only.

    Returns o [B, T, H, V] in the type of `v` and S after the last token, float32 (float64 for float64 inputs), as is all inside.
    Raises ShapeError, also for positive gates where looking is cheap (eager, on the CPU).
    O(T (C² + C (K + V) + K V) H) time, O(T (C + K + K V / C) H) memory to train, in chunks.
    """
    if form not in FORMS:
        raise ShapeError(f"form must be one of {', '.join(FORMS)}; received '{form}'.")
    B, T, H, K = _sizes(q, k, v, beta, log_gate, state, chunk)
    dtype = torch.promote_types(q.dtype, torch.float32)
    scale = K**-0.5 if scale is None else scale
    with torch.autocast(q.device.type, enabled=False):
        S = q.new_zeros(B, H, K, v.shape[-1], dtype=dtype) if state is None else state.to(dtype)
        if T == 0:
            return v, S
        b, g = beta.unsqueeze(-1).to(dtype), None if log_gate is None else log_gate.unsqueeze(-1).to(dtype)
        if mask is not None:
            pad = ~mask[:, :, None, None]
            q, k, v, b = (x.masked_fill(pad, 0.0) for x in (q, k, v, b))
            g = None if g is None else g.masked_fill(pad, 0.0)
        if reset is not None:  # a gate of zero, at padding too
            g = (torch.zeros_like(b) if g is None else g).masked_fill(reset[:, :, None, None], -math.inf)
        inputs = q.to(dtype), k.to(dtype), v.to(dtype), b, g
        if form == "recurrent" or (form == "auto" and T == 1):
            o, S = recurrent(*inputs, S, scale)
        else:
            chunk = min(chunk, 1 << (T - 1).bit_length())
            o, S = in_parts(lambda *part: ChunkedDeltaRule.apply(*part, scale, chunk), inputs, S, chunk)
    return o.to(v.dtype), S


def _sizes(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor | None, state: Tensor | None, chunk: int
) -> tuple[int, int, int, int]:
    if q.dim() != 4 or k.shape != q.shape or v.dim() != 4 or v.shape[:3] != q.shape[:3]:
        raise ShapeError(
            "q and k [B, T, H, K] and v [B, T, H, V] expected; "
            f"received {', '.join(str([*x.shape]) for x in (q, k, v))}. Time comes before heads."
        )
    B, T, H, K = q.shape
    for name, x in (("beta", beta), ("log_gate", g)):
        if x is not None and x.shape != (B, T, H):
            raise ShapeError(f"{name} [B, T, H] = {[B, T, H]} expected; received {[*x.shape]}.")
    if state is not None and state.shape != (B, H, K, v.shape[-1]):
        raise ShapeError(f"state [B, H, K, V] = {[B, H, K, v.shape[-1]]} expected; received {[*state.shape]}.")
    check(chunk, g)
    return B, T, H, K
