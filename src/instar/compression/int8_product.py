"""Products of 8-bit integers with exact sums, in the fastest form that this machine and build of torch have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

LARGEST = 127
_PACKED = WeakTensorKeyDictionary()
"""What oneDNN multiplies by, with the version of the codes that it is of."""
_KEPT = ContextVar("instar_int8_layouts_kept", default=True)


@contextmanager
def unpacked() -> Iterator[None]:
    """Within, codes are multiplied as they are stored: slower for few rows, and nothing is kept beside them."""
    token = _KEPT.set(False)
    try:
        yield
    finally:
        _KEPT.reset(token)


def scaled_product(q: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """scale_o · Σ_i q_t,i · p_o,i, float32 [T, O], of q [T, I] and codes p [O, I], both int8, and scale [O]; the sums are exact.

    On a CPU oneDNN scales while it multiplies; its layout of the codes is made once and kept beside them. Elsewhere, and while
    the call is being compiled, and where no layout is to be kept (`unpacked`), `torch._int_mm`.
    """
    if torch.compiler.is_compiling() or not _KEPT.get() or codes.is_inference() or not _onednn(q.device.type, *codes.shape):
        return product(q, codes.t()).float().mul_(scale)
    return _fused(q, _packed(codes), scale, _offset())


def product(q: Tensor, codes: Tensor) -> Tensor:
    """q [T, I] times codes [I, O], both int8, as int32."""
    if q.device.type == "cpu" or q.shape[0] > 16:
        return torch._int_mm(q, codes)
    return torch._int_mm(F.pad(q, (0, 0, 0, 17 - q.shape[0])), codes)[: q.shape[0]]  # CUDA wants more than 16 rows


@cache
def exact_products(device: str, outputs: int, inputs: int) -> bool:
    """Whether int8 is multiplied exactly at these sizes: older instructions add two products in 16 bits, which saturates."""
    if device != "cpu" and (outputs % 8 or inputs % 8):
        return False
    codes = torch.full((inputs, outputs), LARGEST, dtype=torch.int8, device=device)
    try:
        for value in (-128, LARGEST):
            q = torch.full((17, inputs), value, dtype=torch.int8, device=device)
            if not bool((torch._int_mm(q, codes) == value * LARGEST * inputs).all()):
                return False
    except (RuntimeError, NotImplementedError, AttributeError):
        return False
    return True


@cache
def _onednn(device: str, outputs: int, inputs: int) -> bool:
    """Whether oneDNN's form is here and says the same: these operators are those of torch's own compiler."""
    if device != "cpu":
        return False
    codes, zeros = torch.full((outputs, inputs), LARGEST, dtype=torch.int8), torch.zeros(outputs, dtype=torch.int64)
    try:
        held = torch.ops.onednn.qlinear_prepack(codes, None)
        for value in (-128, LARGEST):
            q = torch.full((17, inputs), value, dtype=torch.int8)
            fused = _fused(q, (held, zeros), torch.ones(outputs), _offset())
            if not bool((fused == float(value * LARGEST * inputs)).all()):
                return False
    except (RuntimeError, NotImplementedError, AttributeError):
        return False
    return True


@cache
def _offset() -> int:
    """What is added to q for oneDNN: 128 where signed by signed is left to its reference loop, thousands of times slower.

    So on processors with VNNI and no AMX, whose instruction takes unsigned by signed. Measured, since it cannot be asked.
    """
    q, codes = torch.ones(16, 256, dtype=torch.int8), torch.ones(256, 256, dtype=torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(codes, None), torch.zeros(256, dtype=torch.int64)
    seconds = {0: float("inf"), 128: float("inf")}
    for _ in range(4):  # the first makes the kernel
        for offset in seconds:
            start = perf_counter()
            _fused(q, packed, torch.ones(256), offset)
            seconds[offset] = min(seconds[offset], perf_counter() - start)
    return 128 if seconds[0] > 8 * seconds[128] else 0


def _packed(codes: Tensor) -> tuple[Tensor, Tensor]:
    """Codes in oneDNN's layout, and zero points of 0."""
    kept: tuple[int, Tensor, Tensor] | None = _PACKED.get(codes)
    if kept is None or kept[0] != codes._version:
        held = torch.ops.onednn.qlinear_prepack(codes.contiguous(), None)  # it does not look at strides
        kept = codes._version, held, torch.zeros(len(codes), dtype=torch.int64)
        _PACKED[codes] = kept
    return kept[1:]


def _fused(q: Tensor, packed: tuple[Tensor, Tensor], scale: Tensor, offset: int) -> Tensor:
    """`scaled_product` of codes in oneDNN's layout, q as it is or (`offset` of 128) with 128 added and taken off in the sums."""
    held, zeros = packed
    if offset:
        q = q.view(torch.uint8) ^ offset  # in two's complement the highest bit is what 128 changes
    return torch.ops.onednn.qlinear_pointwise(
        q, 1.0, offset, held, scale, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )  # fmt: skip
