"""The simple block formats of GGUF: Q8_0, Q4_0 and Q4_1, byte for byte as ggml writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from instar.anatomy.linear import Linear, is_linear
from instar.compression import compressor, slabs
from instar.compression.compressor import Compressor, Work
from instar.errors import TransformError, UnknownNameError

Type = Literal["Q8_0", "Q4_0", "Q4_1"]
BLOCK = 32
BYTES: dict[str, int] = {"Q8_0": 34, "Q4_0": 18, "Q4_1": 20}
"""Of a block of 32 values."""


@dataclass(frozen=True)
class GgufFormat:
    """A row is a sequence of blocks of 32 values.

    Q8_0: d float16, 32 × int8; x̂ = d q, d = max|x| / 127.
    Q4_0: d float16, 16 bytes; x̂ = d (q − 8), d = (the value of largest size) / −8.
    Q4_1: d and m float16, 16 bytes; x̂ = d q + m, d = (max − min) / 15, m = min.
    Byte j of the 16 holds value j in its lower half and value j + 16 in its upper half.
    """

    kind: ClassVar[Any] = "gguf"
    type: Type

    def __post_init__(self) -> None:
        if self.type not in get_args(Type):
            raise UnknownNameError.among("GGUF format", str(self.type), get_args(Type))

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        if not bool(torch.isfinite(weight).all()):
            raise TransformError("NaN or infinity cannot be quantised.")
        if weight.shape[1] % BLOCK:
            raise TransformError(f"{self.type} takes rows of a multiple of {BLOCK} values; received {weight.shape[1]}.")

        def encode(rows: Tensor) -> dict[str, Tensor]:
            x = rows.detach().float().cpu().numpy().reshape(-1, BLOCK)
            with np.errstate(divide="ignore", over="ignore"):
                blocks = {"Q8_0": _q8_0, "Q4_0": _q4_0, "Q4_1": _q4_1}[self.type](x)
            return {"codes": torch.from_numpy(blocks.reshape(rows.shape[0], -1)).to(weight.device)}

        return slabs.encoded(weight, encode, self.blank(tuple(weight.shape)))

    def decode(self, parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
        return slabs.decoded(shape, lambda rows: self._spread(parts["codes"][rows]).view(-1, shape[1]))

    def lookup(self, parts: Mapping[str, Tensor], shape: tuple[int, ...], ids: Tensor) -> Tensor:
        return self._spread(parts["codes"][ids]).view(len(ids), shape[1])

    def blank(self, shape: tuple[int, ...]) -> dict[str, Tensor]:
        return {"codes": torch.empty(shape[0], shape[1] // BLOCK * BYTES[self.type], dtype=torch.uint8, device="meta")}

    def settings(self) -> dict[str, Any]:
        return {"kind": self.kind, **asdict(self)}

    def _spread(self, codes: Tensor) -> Tensor:
        blocks = codes.reshape(-1, BYTES[self.type])
        d = blocks[:, :2].contiguous().view(torch.float16).float()
        if self.type == "Q8_0":
            return d * blocks[:, 2:].contiguous().view(torch.int8)
        packed = blocks[:, -BLOCK // 2 :]
        q = torch.cat([packed & 15, packed >> 4], 1).float()
        return d * (q - 8) if self.type == "Q4_0" else d * q + blocks[:, 2:4].contiguous().view(torch.float16).float()


class GgufBlocks(Compressor):
    """Weights of linear layers and embeddings in a block format of GGUF; activations stay in float.

    Args:
        type: Q8_0 (8.5 bits a weight), Q4_0 (4.5), Q4_1 (5.0).
        keep: regular expressions over names of layers that stay as they are.

    Layers whose rows are no multiple of 32 stay as they are. Source: ggml; the bytes are those of the gguf package.
    """

    method: ClassVar[str] = "gguf_blocks"

    def __init__(self, *, type: Type = "Q8_0", keep: Sequence[str] = ()) -> None:
        self.type: Type = type
        self.format = GgufFormat(type)
        self.block_bytes = BYTES[type]
        self.keep = compressor.checked_keep(keep)

    def takes(self, module: nn.Module) -> bool:
        if is_linear(module):
            return Linear("", module).inputs % BLOCK == 0
        return isinstance(module, nn.Embedding) and compressor.is_table(module) and module.embedding_dim % BLOCK == 0

    def replacement(self, name: str, module: nn.Module, work: Work) -> nn.Module:
        return compressor.stored(name, module, self.format, work)


def _inverse(d: np.ndarray) -> np.ndarray:
    return np.where(d == 0, np.float32(0), np.float32(1) / d)


def _half(values: np.ndarray) -> np.ndarray:
    """As float16, in bytes. Raises TransformError where that overflows."""
    half = values.astype(np.float16)
    if not np.isfinite(half).all():
        raise TransformError("A block needs a larger scale than float16 holds.")
    return half.view(np.uint8)


def _nibbles(q: np.ndarray) -> np.ndarray:
    return q[:, : BLOCK // 2] | q[:, BLOCK // 2 :] << 4


def _q8_0(x: np.ndarray) -> np.ndarray:
    d = np.abs(x).max(1, keepdims=True) / 127
    scaled = x * _inverse(d)
    size = np.abs(scaled)
    down = np.floor(size)
    q = np.sign(scaled) * (down + np.floor(2 * (size - down)))  # halves go away from zero
    return np.concatenate([_half(d), q.astype(np.int8).view(np.uint8)], 1)


def _q4_0(x: np.ndarray) -> np.ndarray:
    d = np.take_along_axis(x, np.abs(x).argmax(1)[:, None], 1) / -8
    q = np.trunc(x * _inverse(d) + np.float32(8.5)).clip(0, 15).astype(np.uint8)
    return np.concatenate([_half(d), _nibbles(q)], 1)


def _q4_1(x: np.ndarray) -> np.ndarray:
    least = x.min(1, keepdims=True)
    d = (x.max(1, keepdims=True) - least) / 15
    q = np.trunc((x - least) * _inverse(d) + np.float32(0.5)).clip(0, 15).astype(np.uint8)
    return np.concatenate([_half(d), _half(least), _nibbles(q)], 1)
