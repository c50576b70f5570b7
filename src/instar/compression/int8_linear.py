"""A linear layer of 8-bit integers that is faster than float32 on CPUs with integer dot products (VNNI, AMX, ARM i8mm)."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.compression.blocks import BlockFormat
from instar.compression.int8_product import LARGEST, exact_products, scaled_product
from instar.compression.stored import Stored, through

WEIGHTS = BlockFormat(bits=8, rows=1, block=0, scale="float32")
"""One scale a row: of a weight that is one output, of activations one token."""
_TINY = 1e-30
"""Rows of zeros get a step that is not zero."""
_ROWS = 256
"""Rows at a time for each thread: what lies between two passes stays in the cache."""


class Int8Linear(Stored):
    """y_t,o = s_t · w_o · Σ_i q_t,i · p_o,i + Σ_(j in C) x_t,j · W_o,j + b_o.

    Integers p of an output with scale w_o; q = round(x / s_t), s_t = max over i not in C of |x_t,i| / 127, computed at each call
    (dynamic). The few input channels C that are far larger than the others stay in float32, so that they do not coarsen the rest.
    The integer sum is exact in int32. Layers that are called with the same tensor one after the other (query, key and value)
    share its q.

    Time for T tokens: I·O·T integer multiply-adds, |C|·O·T in float32, 5 passes over [T, I] and 1 or 2 over [T, O]. Memory:
    I·O bytes, and as many again once a CPU has multiplied, in whose own layout they are kept.
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
        given = weight.detach().contiguous()  # that of a Conv1D is a transposed view
        rest = given.index_fill(1, columns, 0) if len(columns) else given
        return {**WEIGHTS.encode(rest), "columns": columns, "exact": given[:, columns].T.float().contiguous()}

    @property
    def weight(self) -> Tensor:
        """[O, I] in float32."""
        return super().weight.index_copy_(1, self.columns, self.exact.T)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.numel() // self.in_features
        if not rows or (torch.is_grad_enabled() and x.requires_grad) or not exact_products(x.device.type, *self.shape):
            return self.reference(x)
        q, steps, large = _shared(x, self.in_features, self.columns)
        found = scaled_product(q, self.codes, self.scale.view(-1))
        if self.bias is None:
            found.mul_(steps)
        else:
            torch.addcmul(self.bias.detach(), found, steps, out=found)
        if large.shape[1]:
            found.addmm_(large, self.exact)
        return found.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def reference(self, x: Tensor) -> Tensor:
        """The same function in float32, through which gradients pass straight: the oracle of `forward`."""
        flat = x.reshape(-1, self.in_features).float()
        if flat.shape[0]:
            held = WEIGHTS.quantise(flat.index_fill(1, self.columns, 0)).dequantise()
            flat = through(flat, held.index_copy(1, self.columns, flat.detach()[:, self.columns]))
        bias = None if self.bias is None else self.bias.float()
        return F.linear(flat, self.weight, bias).to(x.dtype).view(*x.shape[:-1], self.out_features)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Int8Linear:
        """Elsewhere with the model; its scales stay in float32 where it is cast, which is the type of the products."""
        kept = {name: getattr(self, name) for name in ("scale", "exact")}
        super()._apply(fn, recurse)
        for name, tensor in kept.items():
            if (moved := getattr(self, name)).dtype != tensor.dtype:
                setattr(self, name, tensor.to(moved.device))
        return self

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
    at_once = _ROWS * torch.get_num_threads()
    if len(x) <= at_once:
        q, steps = _rounded(x, columns, x.abs())
        return q.to(torch.int8), steps, x[:, columns]
    q, steps = torch.empty_like(x, dtype=torch.int8), x.new_empty(len(x), 1)
    between = x.new_empty(at_once, x.shape[1])
    for start in range(0, len(x), at_once):
        here = slice(start, start + at_once)
        part = x[here]
        q[here], steps[here] = _rounded(part, columns, torch.abs(part, out=between[: len(part)]))
    return q, steps, x[:, columns]


def _rounded(x: Tensor, columns: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """q, still as floats, and s of x, whose absolute values `size` are overwritten."""
    if len(columns):
        size.index_fill_(1, columns, 0)
    steps = size.amax(1, keepdim=True).clamp_(min=_TINY).mul_(1 / LARGEST)
    return torch.mul(x, steps.reciprocal(), out=size).round_(), steps


_LAST = threading.local()


def _shared(x: Tensor, width: int, columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`quantised` of x as rows; kept until another tensor comes, which is known by identity and version."""
    whole = x if x._base is None else x._base
    # Neither has a version that tells of every write: a fused optimiser steps its parameters without one.
    if x.is_inference() or (whole.is_leaf and whole.requires_grad):
        return quantised(x.reshape(-1, width).float(), columns)
    kept = getattr(_LAST, "kept", None)
    if kept is not None and kept[0]() is x and kept[1] == x._version and torch.equal(kept[2], columns):
        return kept[3]
    found = quantised(x.detach().reshape(-1, width).float(), columns)
    _LAST.kept = (weakref.ref(x), x._version, columns, found)
    return found
