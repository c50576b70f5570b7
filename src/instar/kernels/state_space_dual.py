"""The state-space dual of Mamba-2: one function for the recurrence and the chunked form.

Dao & Gu 2024, "Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured State Space Duality"
(arXiv 2405.21060). It is gated linear attention with one gate for all keys of a head, and with keys and queries shared by the
heads of a group; what is shared is computed once.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from instar.errors import ShapeError
from instar.kernels.chunks import check, in_parts
from instar.kernels.gated_linear_reference import recurrent
from instar.kernels.state_space_dual_chunks import ChunkedStateSpace

Form = Literal["auto", "recurrent", "chunked"]
FORMS = get_args(Form)


def state_space_dual(
    x: Tensor,
    keys: Tensor,
    queries: Tensor,
    log_gate: Tensor,
    *,
    state: Tensor | None = None,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
    form: Form = "auto",
    chunk: int = 64,
) -> tuple[Tensor, Tensor]:
    r"""S_t = e^{g_t} S_{t-1} + B_t x_tᵀ,   y_t = S_tᵀ C_t, for each head; B and C are those of the head's group.

    Args:
        x: [B, T, H, V], the inputs, already times the step Δ.
        keys, queries: B and C, [B, T, G, K], G a divisor of H; heads 0 … H/G - 1 are the first group.
        log_gate: g = Δ A ≤ 0, [B, T, H]. -inf forgets all.
        state: S before the first token, [B, H, K, V]; None is zero.
        mask: bool [B, T], False leaves a token out (it neither writes nor forgets).
        reset: bool [B, T], True drops the state before that token, exactly.
        form: "recurrent" token by token; "chunked"; "auto" the recurrence for one token, else chunks. Both are equal in values
            and gradients but for rounding; "recurrent" alone has second derivatives.
        chunk: C, a power of two; it changes speed and rounding only.

    Returns y [B, T, H, V] in the type of `x` and S after the last token, float32 (float64 for float64 inputs), as is all inside.
    Raises ShapeError, also for positive gates where looking is cheap (eager, on the CPU).
    O(T (C K G + C V H + K V H)) time, O(T (C + V + K V / C) H) memory to train, in chunks.
    """
    if form not in FORMS:
        raise ShapeError(f"form must be one of {', '.join(FORMS)}; received '{form}'.")
    B, T, H, groups = _sizes(x, keys, queries, log_gate, state, chunk)
    dtype = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        S = x.new_zeros(B, H, keys.shape[-1], x.shape[-1], dtype=dtype) if state is None else state.to(dtype)
        if T == 0:
            return x, S
        values, g = x.to(dtype), log_gate.unsqueeze(-1).to(dtype)
        keys, queries = keys.to(dtype), queries.to(dtype)
        if mask is not None:
            pad = ~mask[:, :, None, None]
            values, keys, queries, g = (part.masked_fill(pad, 0.0) for part in (values, keys, queries, g))
        if reset is not None:  # a gate of zero, at padding too
            g = g.masked_fill(reset[:, :, None, None], -math.inf)
        if form == "recurrent" or (form == "auto" and T == 1):
            q, k = (part.repeat_interleave(H // groups, dim=2) for part in (queries, keys))
            y, S = recurrent(q, k, values, g, S, 1.0, None)
        else:
            chunk = min(chunk, 1 << (T - 1).bit_length())
            y, S = in_parts(lambda *part: ChunkedStateSpace.apply(*part, chunk), (values, keys, queries, g), S, chunk)
    return y.to(x.dtype), S


def _sizes(x: Tensor, keys: Tensor, queries: Tensor, g: Tensor, state: Tensor | None, chunk: int) -> tuple[int, int, int, int]:
    if x.dim() != 4 or keys.dim() != 4 or keys.shape != queries.shape or keys.shape[:2] != x.shape[:2]:
        raise ShapeError(
            "x [B, T, H, V] and keys and queries [B, T, G, K] expected; "
            f"received {', '.join(str([*part.shape]) for part in (x, keys, queries))}. Time comes before heads."
        )
    (B, T, H, V), (groups, K) = x.shape, keys.shape[2:]
    if groups < 1 or H % groups:
        raise ShapeError(f"The groups of keys and queries must divide the {H} heads of x; received {groups}.")
    if g.shape != (B, T, H):
        raise ShapeError(f"log_gate [B, T, H] = {[B, T, H]} expected; received {[*g.shape]}.")
    if state is not None and state.shape != (B, H, K, V):
        raise ShapeError(f"state [B, H, K, V] = {[B, H, K, V]} expected; received {[*state.shape]}.")
    check(chunk, g)
    return B, T, H, groups
