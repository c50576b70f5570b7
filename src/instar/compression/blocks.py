"""The block format: integers of few bits, and one scale for each tile of R × K of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from instar.compression import packing, slabs
from instar.errors import ShapeError, TransformError

Scale = Literal["power", "power_mse", "float16", "float32"]
FLUSHED = 2.0**-120
"""Tiles whose largest value is smaller become zero: their exponent would not fit into int8."""


@dataclass(frozen=True)
class Blocks:
    """x̂ = q · s, tile by tile."""

    q: Tensor
    """Integers [R, C]: int8, or int16 for more than 8 bits."""
    scale: Tensor
    """[⌈R/rows⌉, ⌈C/block⌉]: e as int8, s = 2^−e, or s itself as a float."""
    format: BlockFormat

    def dequantise(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """x̂ [R, C]; exact in float32 for powers of two above 2^−126."""
        return self.format.spread(self.q.to(dtype), self.steps(dtype))

    def steps(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """s of each tile."""
        return self.scale.to(dtype) if self.scale.is_floating_point() else power_of_two(-self.scale.long(), dtype)


@dataclass(frozen=True)
class BlockFormat:
    """q = clamp(round(x / s), −2^(b−1), 2^(b−1) − 1) with one s for each tile of `rows` × `block`; halves round to even.

    Args:
        bits: b, 2 to 16. rows, block: of a tile; 0 takes the whole axis. Ragged edges are tiles too.
        scale: how s is found and kept. power: 2^−e, e = ⌊log2((2^(b−1) − 1) / max|x|)⌋ as int8, so that nothing is clipped.
            power_mse: the better of e and e + 1 in squared error, which clips the largest values and halves the step.
            float16, float32: max|x| / (2^(b−1) − 1).

    Bits a value: b + (8, 16 or 32) / (rows · block). Source: the "shift" of arXiv 2304.01483, of which the abstract alone is
    public: tiles and rounding are chosen here.
    """

    kind: ClassVar = "blocks"
    bits: int = 8
    rows: int = 1
    block: int = 64
    scale: Scale = "power"

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 16 or self.rows < 0 or self.block < 0 or self.scale not in get_args(Scale):
            raise ShapeError(
                f"A block format expects 2 to 16 bits, rows and block of 0 or more and a scale of {', '.join(get_args(Scale))}; "
                f"received {self.bits}, {self.rows} × {self.block}, {self.scale!r}."
            )

    @property
    def largest(self) -> int:
        """2^(b−1) − 1."""
        return int(2 ** (self.bits - 1)) - 1

    def quantise(self, x: Tensor) -> Blocks:
        """x [R, C], any float type. Raises TransformError for NaN or infinity. O(R C)."""
        x = x.detach() if x.dtype == torch.float64 else x.detach().float()
        tiles = self.tiles(x)
        top = tiles.abs().amax((1, 3))
        if not bool(torch.isfinite(top).all()):
            raise TransformError("NaN or infinity cannot be quantised.")
        if self.scale.startswith("float"):
            scale = (top / self.largest).to(getattr(torch, self.scale))
            if not bool(torch.isfinite(scale).all()):
                raise TransformError(f"A value of {float(top.max()):.3g} needs a larger scale than float16 holds.")
            return Blocks(self._crop(self._round(tiles, 1 / _nonzero(scale.to(x.dtype))), x), scale, self)
        e = exponents(top, self.bits)
        if self.scale == "power_mse":
            finer = (e + 1).clamp(max=127)
            e = torch.where(self._error(tiles, finer) < self._error(tiles, e), finer, e)
        q = self._round(tiles, power_of_two(e, x.dtype)) * (top >= FLUSHED)[:, None, :, None]
        return Blocks(self._crop(q, x), e.to(torch.int8), self)

    def tiles(self, x: Tensor) -> Tensor:
        """x [R, C] as [R/rows, rows, C/block, block], padded with zeros, which no maximum sees."""
        rows, block = self.tile(x.shape)
        padded = F.pad(x, (0, -x.shape[1] % block, 0, -x.shape[0] % rows)) if x.shape[1] % block or x.shape[0] % rows else x
        return padded.reshape(padded.shape[0] // rows, rows, padded.shape[1] // block, block)

    def tile(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """(rows, columns) of a tile of a tensor of this shape."""
        return min(self.rows or shape[0], shape[0]) or 1, min(self.block or shape[1], shape[1]) or 1

    def spread(self, q: Tensor, steps: Tensor) -> Tensor:
        """q [R, C] times the step of its tile."""
        return self._cropped(self.tiles(q) * steps[:, None, :, None], q)

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        """What is stored of a weight [out, in]."""

        def encode(rows: Tensor) -> dict[str, Tensor]:
            made = self.quantise(rows)
            return {"codes": packing.pack(made.q, self.bits), "scale": made.scale}

        return slabs.encoded(weight, encode, self.blank(tuple(weight.shape)), self._apart(tuple(weight.shape)))

    def unpack(self, parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> Blocks:
        """The blocks that `encode` stored."""
        return Blocks(packing.unpack(parts["codes"], self.bits, shape), parts["scale"], self)

    def decode(self, parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
        """The weight, float32, that `encode` stored."""
        codes, (height, _) = parts["codes"], self.tile(shape)

        def decode(rows: slice) -> Tensor:
            start, stop = (row * shape[1] for row in (rows.start, rows.stop))
            own = codes[rows] if self.bits >= 8 else codes[start // 8 * self.bits : -(-stop // 8) * self.bits]
            scale = parts["scale"][rows.start // height : -(-rows.stop // height)]
            return self.unpack({"codes": own, "scale": scale}, (rows.stop - rows.start, shape[1])).dequantise()

        return slabs.decoded(shape, decode, self._apart(shape))

    def lookup(self, parts: Mapping[str, Tensor], shape: tuple[int, ...], ids: Tensor) -> Tensor:
        """The rows `ids` [N] of `decode`, [N, C]."""
        if self.bits < 8 and shape[1] % 8:  # rows do not begin with a byte
            return self.decode(parts, shape)[ids]
        codes = parts["codes"].view(shape[0], -1)[ids]
        q = packing.unpack(codes.reshape(-1) if self.bits < 8 else codes, self.bits, (len(ids), shape[1]))
        return Blocks(q, parts["scale"][ids // self.tile(shape)[0]], replace(self, rows=1)).dequantise()

    def blank(self, shape: tuple[int, ...]) -> dict[str, Tensor]:
        """Tensors without data of the shapes and types that `encode` gives."""
        rows, block = self.tile(shape)
        kind = getattr(torch, self.scale) if self.scale.startswith("float") else torch.int8
        return {
            "codes": torch.empty(packing.packed_shape(self.bits, shape), dtype=packing.packed_dtype(self.bits), device="meta"),
            "scale": torch.empty(-(-shape[0] // rows), -(-shape[1] // block), dtype=kind, device="meta"),
        }

    def settings(self) -> dict[str, Any]:
        """For a manifest."""
        return {"kind": self.kind, **asdict(self)}

    def _apart(self, shape: tuple[int, ...]) -> int:
        """Rows whose tiles, and packed bytes, are theirs alone."""
        return math.lcm(self.tile(shape)[0], 8)

    def _round(self, tiles: Tensor, factor: Tensor) -> Tensor:
        return (tiles * factor[:, None, :, None]).round_().clamp_(-self.largest - 1, self.largest)

    def _error(self, tiles: Tensor, e: Tensor) -> Tensor:
        """Squared error of each tile."""
        found = self._round(tiles, power_of_two(e, tiles.dtype)) * power_of_two(-e, tiles.dtype)[:, None, :, None]
        return (found - tiles).double().square().sum((1, 3))

    def _crop(self, q: Tensor, like: Tensor) -> Tensor:
        return self._cropped(q.to(torch.int8 if self.bits <= 8 else torch.int16), like)

    @staticmethod
    def _cropped(tiles: Tensor, like: Tensor) -> Tensor:
        whole = tiles.reshape(tiles.shape[0] * tiles.shape[1], tiles.shape[2] * tiles.shape[3])
        return whole if whole.shape == like.shape else whole[: like.shape[0], : like.shape[1]].contiguous()


def exponents(top: Tensor, bits: int) -> Tensor:
    """e = ⌊log2((2^(b−1) − 1) / top)⌋ as int64, exact also at powers of two; 0 where top is 0; −127 to 127."""
    mantissa, exponent = torch.frexp(top)  # top = mantissa · 2^exponent, ½ ≤ mantissa < 1
    e = bits - 1 - exponent.long() - (mantissa * 2 ** (bits - 1) > 2 ** (bits - 1) - 1).long()
    return torch.where(top >= FLUSHED, e, 0).clamp(-127, 127)


def power_of_two(n: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """2^n for integers −1022 ≤ n ≤ 1023, exact: made of bits, since powers by `pow` may be off by one."""
    return ((n.long() + 1023) << 52).view(torch.float64).to(dtype)


def _nonzero(scale: Tensor) -> Tensor:
    return torch.where(scale > 0, scale, torch.inf)  # a tile without scale gives q = 0
