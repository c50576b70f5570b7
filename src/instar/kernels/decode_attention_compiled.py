"""The plan of a decoding step run by the compiled kernel (`decode_attention.cpp`)."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from instar.errors import BuildError
from instar.kernels import native
from instar.kernels.decode_attention_partial import partial
from instar.kernels.decode_attention_plan import DecodePlan
from instar.kernels.decode_attention_torch import Scales
from instar.kernels.quantised_rows import dequantise_rows, quantise_rows

TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
CACHED = TYPES | {torch.int8: 3}
BLOCK = 32
"""Widths are multiples of it."""
_POINTERS = ("q", "keys", "values", "key_scales", "value_scales", "out", "lse", "scratch", "pages", "segments", "owners", "cuts")
_NUMBERS = ("q_type", "type", "heads", "kv_heads", "width", "value_width", "workers", "n_cuts", "page_size", "pages_of_row")
_STRIDES = tuple(f"{of}_{axis}" for of in ("key", "value", "key_scale", "value_scale") for axis in ("row", "head", "column"))


class Arguments(ctypes.Structure):
    """As the C++ file declares it."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_int64) for name in (*_NUMBERS, *_STRIDES)),
        ("scale", ctypes.c_float),
    ]


def takes(q: Tensor, keys: Tensor, values: Tensor) -> bool:
    """Whether the kernel knows these types, widths and strides, and nobody asks for gradients or a graph."""
    return (
        q.device.type == keys.device.type == values.device.type == "cpu"
        and q.dtype in TYPES
        and keys.dtype in CACHED
        and keys.shape[3] % BLOCK == 0
        and values.shape[3] % BLOCK == 0
        and keys.stride(3) == values.stride(3) == 1
        and not (torch.is_grad_enabled() and (q.requires_grad or keys.requires_grad or values.requires_grad))
        and not torch.compiler.is_compiling()
    )


def run(
    library: ctypes.CDLL,
    plan: DecodePlan,
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    scales: Scales | None,
    scale: float,
    want_lse: bool,
) -> tuple[Tensor, Tensor | None]:
    """Output [B, H, V] and log-sum-exp [B, H] of q [B, H, K] over keys and values [rows or pages, Hkv, columns, width].

    scales: of int8 keys and values, [rows or pages, Hkv, columns] each.
    """
    q = q.contiguous()
    B, H, K = q.shape
    V, G = values.shape[3], H // plan.kv_heads
    out = q.new_zeros(B, H, V) if plan.empty else q.new_empty(B, H, V)
    # Whatever the user's defaults are: the kernel writes numbers of four bytes.
    lse = torch.full((B, H), -torch.inf, dtype=torch.float32, device="cpu") if want_lse else None
    scratch = torch.empty(plan.slots * G * (V + 2), dtype=torch.float32, device="cpu") if plan.slots else None
    given = Arguments(
        q.data_ptr(),
        keys.data_ptr(),
        values.data_ptr(),
        *((None, None) if scales is None else (part.data_ptr() for part in scales)),
        out.data_ptr(),
        None if lse is None else lse.data_ptr(),
        None if scratch is None else scratch.data_ptr(),
        *plan.addresses,
        TYPES[q.dtype],
        CACHED[keys.dtype],
        H,
        plan.kv_heads,
        K,
        V,
        plan.workers,
        len(plan.cuts),
        plan.page_size,
        0 if plan.pages is None else plan.pages.shape[1],
        *keys.stride()[:3],
        *values.stride()[:3],
        *((0,) * 6 if scales is None else (stride for part in scales for stride in part.stride())),
        scale,
    )
    library.instar_decode(ctypes.byref(given))
    return out, lse


def try_out(path: str) -> None:
    """Load a new library and compare it with the torch form. Raises BuildError where they differ."""
    library = native.load(Path(path))
    draw = torch.Generator().manual_seed(0)
    plan = DecodePlan.of([70, 1], 2, workers=2)
    for dtype in CACHED:
        q, keys, values = (torch.randn(2, n, 80, 64, generator=draw) for n in (6, 2, 2))
        q = q[:, :, 0]
        if dtype == torch.int8:
            (whole, of_keys), (whole_values, of_values) = quantise_rows(keys), quantise_rows(values)
            keys, values = dequantise_rows(whole, of_keys), dequantise_rows(whole_values, of_values)
            out, lse = run(library, plan, q, whole, whole_values, (of_keys, of_values), 0.125, True)
        else:
            q, keys, values = (part.to(dtype) for part in (q, keys, values))
            out, lse = run(library, plan, q, keys, values, None, 0.125, True)
        assert lse is not None
        for row, length in enumerate((70, 1)):
            part = partial(q[row].view(2, 3, 64), keys[row, :, :length], values[row, :, :length], 0.125)
            wanted, level = (t.flatten(0, 1) for t in part.output())
            if not (torch.allclose(lse[row], level, atol=1e-4) and torch.allclose(out[row].float(), wanted, atol=2e-2)):
                raise BuildError(f"The compiled kernel and the torch form differ in {dtype}.")
