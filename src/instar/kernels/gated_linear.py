"""Gated linear attention: one function for the recurrence, both chunk forms, and the CUDA kernel of `fla` where it is installed.

Yang, Wang, Shen, Panda, Kim 2023, "Gated Linear Attention Transformers with Hardware-Efficient Training" (arXiv 2312.06635).
Without a gate it is causal linear attention, with a constant gate of each head RetNet's retention, with one gate for all keys
of a head the state-space dual of Mamba-2.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from instar.errors import ShapeError
from instar.kernels.chunks import in_parts
from instar.kernels.gated_linear_chunks import ChunkedGatedLinear
from instar.kernels.gated_linear_reference import recurrent

Form = Literal["auto", "recurrent", "two_level", "factorised"]
FORMS = get_args(Form)

RANGE = -40.0
"""The factorised form holds e^{-b} of a chunk: e^40 leaves float32 room for keys, queries and their products of 1e10 each."""


def gated_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_gate: Tensor | None,
    *,
    scale: float | None = None,
    state: Tensor | None = None,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
    form: Form = "auto",
    chunk: int = 64,
) -> tuple[Tensor, Tensor]:
    r"""S_t = diag(e^{g_t}) S_{t-1} + k_t v_tᵀ,   o_t = scale · q_tᵀ S_t, for each head.

    Args:
        q, k: [B, T, H, K].
        v: [B, T, H, V].
        log_gate: g ≤ 0, [B, T, H, K] or broadcastable to it: [B, T, H, 1] is one gate for a head, [H, 1] a fixed decay. Those
            are cheaper. -inf forgets all. None is no gate.
        scale: None is 1 / √K.
        state: S before the first token, [B, H, K, V]; None is zero.
        mask: bool [B, T], False leaves a token out (neither k vᵀ nor g of it counts).
        reset: bool [B, T], True drops the state before that token, exactly.
        form: "recurrent" token by token; "two_level" in chunks, for any gate; "factorised" in chunks by one product less, used
            only where no chunk's gates sum to less than -40 and two_level otherwise (as in a compiled graph or off the CPU, where
            the sum is not looked at); "auto" the recurrence for one token, else the cheapest that applies. All are equal in
            values and gradients but for rounding (so that with "auto" an extreme gate can change earlier outputs by rounding);
            "recurrent" alone has second derivatives.
        chunk: C, a power of two; it changes the speed only.

    Returns o [B, T, H, V] in the type of `v` and S after the last token, float32 (float64 for float64 inputs), as is all inside.
    Raises ShapeError, also for positive gates where looking is cheap (chunks, eager, on the CPU); elsewhere they may overflow.
    O(T (C (K + V) + K V) H) time, O(T (C + K V / C) H) memory to train, in chunks.
    With CUDA tensors and `fla` installed, "auto" uses its kernel unless there are resets. That door has never been run by us.
    """
    if form not in FORMS:
        raise ShapeError(f"form must be one of {', '.join(FORMS)}; received '{form}'.")
    B, T, H, K = _sizes(q, k, v, log_gate, state, chunk)
    dtype = torch.promote_types(q.dtype, torch.float32)
    scale = K**-0.5 if scale is None else scale
    with torch.autocast(q.device.type, enabled=False):
        S = q.new_zeros(B, H, K, v.shape[-1], dtype=dtype) if state is None else state.to(dtype)
        g = None if log_gate is None else log_gate.to(dtype)
        if g is not None:
            g = g.expand(B, T, H, g.shape[-1])
        if T == 0:
            return v, S
        if mask is not None:
            pad = ~mask[:, :, None, None]
            q, k, v = (x.masked_fill(pad, 0.0) for x in (q, k, v))
            g = None if g is None else g.masked_fill(pad, 0.0)
        if form == "auto" and reset is None and q.is_cuda and T > 1 and dtype == torch.float32:
            found = _fla(q, k, v, g, scale, S)
            if found is not None:
                return found
        inputs = q.to(dtype), k.to(dtype), v.to(dtype), g
        if form == "recurrent" or (form == "auto" and T == 1):
            o, S = recurrent(*inputs, S, scale, reset)
        else:
            chunk = min(chunk, 1 << (T - 1).bit_length())
            factorised = _factorised(g, form, chunk)

            def step(*part: Tensor) -> tuple[Tensor, Tensor]:
                *given, start, before = part
                return ChunkedGatedLinear.apply(*given, before, start, scale, chunk, factorised)

            o, S = in_parts(step, (*inputs, reset), S, chunk)
    return o.to(v.dtype), S


def _sizes(q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, state: Tensor | None, chunk: int) -> tuple[int, int, int, int]:
    if q.dim() != 4 or k.shape != q.shape or v.dim() != 4 or v.shape[:3] != q.shape[:3]:
        raise ShapeError(
            "q and k [B, T, H, K] and v [B, T, H, V] expected; "
            f"received {', '.join(str([*x.shape]) for x in (q, k, v))}. Time comes before heads."
        )
    B, T, H, K = q.shape
    if g is not None:
        fits = 1 <= g.dim() <= 4 and g.shape[-1] in (1, K)
        if not fits or any(n not in (1, N) for n, N in zip(reversed(g.shape), (K, H, T, B), strict=False)):
            raise ShapeError(f"log_gate must broadcast to {[B, T, H, K]}; received {[*g.shape]}.")
    if state is not None and state.shape != (B, H, K, v.shape[-1]):
        raise ShapeError(f"state [B, H, K, V] = {[B, H, K, v.shape[-1]]} expected; received {[*state.shape]}.")
    if chunk < 1 or chunk & (chunk - 1):
        raise ShapeError(f"chunk must be a power of two; received {chunk}.")
    return B, T, H, K


def _factorised(g: Tensor | None, form: Form, chunk: int) -> bool:
    """Whether e^{-b} stays in range in every chunk; also where positive gates are found."""
    if g is None:
        return True
    if torch.compiler.is_compiling() or g.device.type != "cpu":
        return False
    least, most = (float(x) for x in g.detach().aminmax())
    if most > 0:
        raise ShapeError(f"log_gate must not be positive; received {most:g}. It is the logarithm of a factor in [0, 1].")
    if form == "two_level":
        return False
    return least * chunk >= RANGE or _lowest(g.detach(), chunk) >= RANGE


def _lowest(g: Tensor, chunk: int) -> float:
    """The least sum of the gates of a chunk."""
    T = g.shape[1]
    full = T // chunk * chunk
    sums = [g[:, full:].sum(1).amin()] if full < T else []
    if full:
        sums.append(g[:, :full].unflatten(1, (-1, chunk)).sum(2).amin())
    return float(torch.stack(sums).amin())


def _fla(q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, scale: float, S: Tensor) -> tuple[Tensor, Tensor] | None:
    """The Triton kernel of flash-linear-attention; None when it is not installed or the graph is being compiled."""
    if torch.compiler.is_compiling():
        return None
    try:
        from fla.ops.gla import chunk_gla
    except ImportError:
        return None
    gates = torch.zeros_like(k) if g is None else g.expand(k.shape)
    return chunk_gla(q, k, v, g=gates, scale=scale, initial_state=S, output_final_state=True)
