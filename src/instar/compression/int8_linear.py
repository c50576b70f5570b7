"""A linear layer of 8-bit integers that is faster than float32 on CPUs with integer dot products (VNNI, AMX, ARM i8mm)."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.compression.blocks import BlockFormat
from instar.compression.stored import Stored, through

LARGEST = 127
WEIGHTS = BlockFormat(bits=8, rows=1, block=0, scale="float32")
"""One scale a row: of a weight that is one output, of activations one token."""
_TINY = 1e-30
"""Rows of zeros get a step that is not zero."""
_ROWS = 1024
"""Rows at a time: what lies between two passes stays in the cache."""


class Int8Linear(Stored):
    """y_t,o = s_t · w_o · Σ_i q_t,i · p_o,i + Σ_(j in C) x_t,j · W_o,j + b_o.

    Integers p of an output with scale w_o; q = round(x / s_t), s_t = max over i not in C of |x_t,i| / 127, computed at each call
    (dynamic). The few input channels C that are far larger than the others stay in float32, so that they do not coarsen the rest.
    The integer sum is exact in int32. Layers that are called with the same tensor one after the other (query, key and value)
    share its q.

    Time for T tokens: I·O·T integer multiply-adds, |C|·O·T in float32, 5 passes over [T, I] and 2 or 3 over [T, O].
    """

    def __init__(self, parts: Mapping[str, Tensor], shape: tuple[int, int], bias: nn.Parameter | None = None) -> None:
        super().__init__(WEIGHTS, parts, shape)
        self.codes: Tensor
        self.scale: Tensor
        self.columns: Tensor
        self.exact: Tensor
        self.out_features, self.in_features = self.shape
        self.bias = bias

    @staticmethod
    def parts_of(weight: Tensor, columns: Tensor) -> dict[str, Tensor]:
        """codes int8 [O, I] and scale [O, 1] of a weight [O, I] without `columns` [C]; and those, exact [C, O]."""
        rest = weight.detach().float().index_fill(1, columns, 0)
        return {**WEIGHTS.encode(rest), "columns": columns, "exact": weight.detach().float()[:, columns].T.contiguous()}

    @property
    def weight(self) -> Tensor:
        """[O, I] in float32."""
        return super().weight.index_copy(1, self.columns, self.exact.T)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.numel() // self.in_features
        if not rows or (torch.is_grad_enabled() and x.requires_grad) or not exact_products(x.device.type, *self.shape):
            return self.reference(x)
        q, steps, large = _shared(x, self.in_features, self.columns)
        found = torch.empty(rows, self.out_features, device=x.device)
        codes, scale = self.codes.t(), self.scale.view(-1)
        for start in range(0, rows, _ROWS):
            here = slice(start, start + _ROWS)
            part = found[here]
            torch.mul(_product(q[here], codes), scale, out=part)
            if self.bias is None:
                part.mul_(steps[here])
            else:
                torch.addcmul(self.bias, part, steps[here], out=part)
            if large.shape[1]:
                part.addmm_(large[here], self.exact)
        return found.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def reference(self, x: Tensor) -> Tensor:
        """The same function in float32, through which gradients pass straight: the oracle of `forward`."""
        flat = x.reshape(-1, self.in_features).float()
        if flat.shape[0]:
            held = WEIGHTS.quantise(flat.index_fill(1, self.columns, 0)).dequantise()
            flat = through(flat, held.index_copy(1, self.columns, flat.detach()[:, self.columns]))
        return F.linear(flat, self.weight, self.bias).to(x.dtype).view(*x.shape[:-1], self.out_features)

    def spec(self) -> dict[str, Any]:
        """What `blank` needs."""
        return {"shape": list(self.shape), "bias": self.bias is not None, "columns": len(self.columns)}

    @classmethod
    def blank(cls, shape: tuple[int, int], bias: nn.Parameter | None, columns: int) -> Int8Linear:
        """A layer without data."""
        few = {
            "columns": torch.empty(columns, dtype=torch.int64, device="meta"),
            "exact": torch.empty(columns, shape[0], device="meta"),
        }
        return cls({**WEIGHTS.blank(shape), **few}, shape, bias)


def quantised(x: Tensor, columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q int8 [T, I] (anything in `columns`), s [T, 1], and x of `columns` [T, C]. A NaN in a row makes its s NaN."""
    size = x.abs()
    if len(columns):
        size.index_fill_(1, columns, 0)
    steps = size.amax(1, keepdim=True).clamp_(min=_TINY).mul_(1 / LARGEST)
    return torch.mul(x, steps.reciprocal(), out=size).round_().to(torch.int8), steps, x[:, columns]


_LAST = threading.local()


def _shared(x: Tensor, width: int, columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`quantised` of x as rows; kept until another tensor comes, which is known by identity and version."""
    if x.is_inference():  # has no version that would tell of writes
        return quantised(x.reshape(-1, width).float(), columns)
    kept = getattr(_LAST, "kept", None)
    if kept is not None and kept[0]() is x and kept[1] == x._version and torch.equal(kept[2], columns):
        return kept[3]
    found = quantised(x.detach().reshape(-1, width).float(), columns)
    _LAST.kept = (weakref.ref(x), x._version, columns, found)
    return found


def _product(q: Tensor, codes: Tensor) -> Tensor:
    """q [T, I] int8 times codes [I, O] int8 as int32."""
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
