"""Arithmetic of integers with shifts, twice: in float64, which simulates it, and in integers. Both give the same bits.

A number is v · 2^−n: v is an integer tensor (float64 in `Simulated`, int64 in `Integers`), n an int64 tensor of shifts.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor

from instar.compression.blocks import FLUSHED, BlockFormat, Blocks, exponents, power_of_two
from instar.errors import UnknownNameError

Backend = Literal["simulate", "integer"]
_NEVER = 1 << 20
"""The exponent that a zero would allow."""


class Arithmetic(Protocol):
    """What the layers need."""

    def number(self, v: Tensor) -> Tensor:
        """Integers as this arithmetic holds them."""

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        """a [..., T, K] times bᵀ, b [..., O, K]: exact."""

    def shift(self, v: Tensor, n: Tensor) -> Tensor:
        """round(v · 2^n), halves to even; exact for n ≥ 0."""

    def divide(self, a: Tensor, b: Tensor) -> Tensor:
        """⌊a / b + ½⌋ for b > 0."""

    def root(self, v: Tensor) -> Tensor:
        """⌊√v⌋ for 0 ≤ v < 2^53."""

    def requantise(self, v: Tensor, n: Tensor, format: BlockFormat) -> Blocks:
        """v · 2^−n [T, O] in blocks of fewer bits: the exponent of each block from its largest value, then one rounding."""


class Simulated:
    """float64: every integer below 2^53 is exact."""

    def number(self, v: Tensor) -> Tensor:
        return v.double()

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        return a.double() @ b.double().transpose(-1, -2)

    def shift(self, v: Tensor, n: Tensor) -> Tensor:
        return torch.round(v * power_of_two(n.clamp(min=-200)))

    def divide(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.floor((2 * a + b) / (2 * b))

    def root(self, v: Tensor) -> Tensor:
        found = torch.floor(torch.sqrt(v))
        return found - (found * found > v).double()

    def requantise(self, v: Tensor, n: Tensor, format: BlockFormat) -> Blocks:
        return format.quantise(v * power_of_two(-n))


class Integers:
    """int64, products of int8 in int32: what a device without floating point does."""

    def number(self, v: Tensor) -> Tensor:
        return v.long()

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        if a.dtype == b.dtype == torch.int8 and a.dim() == 2 and a.device.type == "cpu":
            return _exact_int8(a, b)
        return a.long() @ b.long().transpose(-1, -2)

    def shift(self, v: Tensor, n: Tensor) -> Tensor:
        n = torch.broadcast_to(n, v.shape)
        down = (-n).clamp(0, 62)
        floor = v >> down
        rest = v - (floor << down)
        half = torch.where(down > 0, 1 << (down - 1).clamp(min=0), 1)
        up = (down > 0) & ((rest > half) | ((rest == half) & (floor & 1 == 1)))
        return torch.where(n >= 0, v << n.clamp(0, 62), floor + up.long())

    def divide(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.div(2 * a + b, 2 * b, rounding_mode="floor")

    def root(self, v: Tensor) -> Tensor:
        """Newton's method from above, which falls until it is ⌊√v⌋; 64 halvings are more than it needs."""
        found = torch.full_like(v, 1 << 27)
        for _ in range(64):
            lower = (found + torch.div(v, found.clamp(min=1), rounding_mode="floor")) >> 1
            if not bool((lower < found).any()):
                break
            found = torch.minimum(found, lower)
        return torch.where(v > 0, found, 0)

    def requantise(self, v: Tensor, n: Tensor, format: BlockFormat) -> Blocks:
        length = torch.frexp(v.abs().double()).exponent.long()  # bits of |v|
        most = 2 ** (format.bits - 1) - 1
        over = (v.abs() << (format.bits - 1)) > (most << length)
        allowed = torch.where(v == 0, _NEVER, format.bits - 1 - length - over.long() + torch.broadcast_to(n, v.shape))
        e = (_NEVER - format.tiles(_NEVER - allowed)).amin((1, 3))  # what pads a tile allows every exponent
        e = torch.where(e == _NEVER, 0, e.clamp(-127, 127))
        spread = format.spread(torch.ones_like(v), e)
        q = self.shift(v, spread - n).clamp(-most - 1, most)
        return Blocks(q.to(torch.int8 if format.bits <= 8 else torch.int16), e.to(torch.int8), format)


def of(backend: Backend) -> Arithmetic:
    """The arithmetic of a name. Raises UnknownNameError."""
    known: dict[str, Arithmetic] = {"simulate": Simulated(), "integer": Integers()}
    if backend not in known:
        raise UnknownNameError.among("back-end", str(backend), known)
    return known[backend]


def room(inputs: int, bits: int) -> int:
    """How far the finest of the partial sums may lie above the coarsest before a sum of `inputs` products could overflow.

    bits: of both factors together. 32 bits are there up to 17, and the 53 of float64 for more (16 + 16, to see what rounding
    alone does).
    """
    return _width(bits) - (inputs - 1).bit_length() - (bits - 2) - 1


def _width(bits: int) -> int:
    """Bits of the half of a sum that the products, and the bias, may each fill."""
    return 31 if bits <= 17 else 52


def matmul(arithmetic: Arithmetic, a: Blocks, b: Blocks, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(v, n): a [..., T, K] times bᵀ, b [..., O, K], both in blocks along K of the same width, leading axes the same.

    Σ_k p_k · 2^−(e_a,k + e_b,k) + bias [O] is brought to one shift n [T, O]: that of the finest block where 32 bits hold it, else
    as fine as they hold for sure. Finer partial sums, and the bias, are rounded there; nothing overflows.
    """
    K = a.q.shape[-1]
    width = min(a.format.block or K, K)
    ea, eb = (_by_row(x).long() for x in (a, b))
    sums = [ea[..., :, None, k] + eb[..., None, :, k] for k in range(ea.shape[-1])]
    coarse, fine = sums[0], sums[0]
    for one in sums[1:]:
        coarse, fine = torch.minimum(coarse, one), torch.maximum(fine, one)
    bits = a.format.bits + b.format.bits
    n = torch.minimum(fine, coarse + room(K, bits))
    if bias is not None:
        size = bias.double().abs()
        n = torch.where(size >= FLUSHED, torch.minimum(n, exponents(size, _width(bits))), n)
    total = None
    for k, one in enumerate(sums):
        here = slice(k * width, (k + 1) * width)
        part = arithmetic.shift(arithmetic.number(arithmetic.product(a.q[..., here], b.q[..., here])), n - one)
        total = part if total is None else total + part
    assert total is not None
    if bias is not None:
        total = total + arithmetic.number(torch.round(bias.double() * power_of_two(n)))
    return total, n


def _by_row(x: Blocks) -> Tensor:
    """Exponents of each row [..., R, blocks], where a tile may hold several."""
    rows = x.format.rows
    return x.scale if rows == 1 else x.scale.repeat_interleave(min(rows or x.q.shape[0], x.q.shape[0]), 0)[: x.q.shape[0]]


def _exact_int8(a: Tensor, b: Tensor) -> Tensor:
    from instar.compression.int8_product import exact_products

    if exact_products("cpu", b.shape[0], a.shape[1]):
        return torch._int_mm(a.contiguous(), b.t())
    return a.long() @ b.long().t()


def rows_of(x: Tensor, format: BlockFormat) -> Blocks:
    """x [..., R, C] in blocks along its last axis, leading axes kept."""
    made = format.quantise(x.reshape(-1, x.shape[-1]))
    return Blocks(made.q.view(x.shape), made.scale.view(*x.shape[:-1], -1), made.format)
