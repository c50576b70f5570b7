"""Layers whose weight is stored in a compressed format and spread out when it is used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.compression.blocks import BlockFormat
from instar.errors import UnknownNameError

_ROWS = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)}


class WeightFormat(Protocol):
    """How a weight [out, in] is stored."""

    kind: ClassVar[Any]
    """Its name in a manifest."""

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        """What is stored. Raises TransformError for NaN, infinity, or a shape that the format does not take."""

    def decode(self, parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
        """The weight again, float32."""

    def lookup(self, parts: Mapping[str, Tensor], shape: tuple[int, ...], ids: Tensor) -> Tensor:
        """The rows `ids` [N] of `decode`, [N, in], without the others where the format allows that."""

    def blank(self, shape: tuple[int, ...]) -> dict[str, Tensor]:
        """Tensors on the device meta of the shapes and types that `encode` gives."""

    def settings(self) -> dict[str, Any]:
        """For a manifest: `kind` and the constructor's arguments."""


class Stored(nn.Module):
    """A layer with a stored weight: the tensors of its format are its buffers."""

    def __init__(self, format: WeightFormat, parts: Mapping[str, Tensor], shape: tuple[int, int]) -> None:
        super().__init__()
        self.format, self.shape, self.names = format, (int(shape[0]), int(shape[1])), tuple(parts)
        for name, tensor in parts.items():
            self.register_buffer(name, tensor)

    @property
    def parts(self) -> dict[str, Tensor]:
        """What is stored."""
        return {name: getattr(self, name) for name in self.names}

    @property
    def weight(self) -> Tensor:
        """The weight [out, in] in float32, spread out anew at each call: O(out · in)."""
        return self.format.decode(self.parts, self.shape)

    def plain(self) -> dict[str, Tensor]:
        """What the layer stands for, by the names of the parameters of an uncompressed one; a weight as [out, in]."""
        return {"weight": self.weight}

    def extra_repr(self) -> str:
        settings = ", ".join(f"{name}={value}" for name, value in self.format.settings().items())
        return f"{self.shape[0]}, {self.shape[1]}, {settings}"


class StoredLinear(Stored):
    """y = W x̂ + b with a stored W [out, in].

    Args:
        bias: the layer's own parameter, or None.
        inputs: x̂ is x rounded to this format, one row a token (all rows together where it says rows=0); None leaves x as it is.
    """

    def __init__(
        self,
        format: WeightFormat,
        parts: Mapping[str, Tensor],
        shape: tuple[int, int],
        bias: nn.Parameter | None = None,
        inputs: BlockFormat | None = None,
    ) -> None:
        super().__init__(format, parts, shape)
        self.out_features, self.in_features = self.shape
        self.bias = bias
        self.inputs = inputs

    def forward(self, x: Tensor) -> Tensor:
        if self.inputs is not None:
            x = rounded(x, self.inputs)
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))

    def spec(self) -> dict[str, Any]:
        """What `blank` needs."""
        inputs = None if self.inputs is None else self.inputs.settings()
        return {"format": self.format.settings(), "shape": list(self.shape), "bias": self.bias is not None, "inputs": inputs}

    @classmethod
    def blank(
        cls, format: WeightFormat, shape: tuple[int, int], bias: nn.Parameter | None, inputs: BlockFormat | None
    ) -> StoredLinear:
        """A layer without data."""
        return cls(format, format.blank(shape), shape, bias, inputs)


class StoredEmbedding(Stored):
    """Rows of a stored table [entries, width]; only those that are asked for are spread out.

    Args:
        dtype: of the rows, as the table had it: the norms of a model in half precision take no other.
    """

    def __init__(
        self,
        format: WeightFormat,
        parts: Mapping[str, Tensor],
        shape: tuple[int, int],
        padding_idx: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(format, parts, shape)
        self.num_embeddings, self.embedding_dim = self.shape
        self.padding_idx, self.dtype = padding_idx, dtype

    def forward(self, ids: Tensor) -> Tensor:
        found = self.format.lookup(self.parts, self.shape, ids.reshape(-1))
        return found.to(self.dtype).view(*ids.shape, self.embedding_dim)

    def spec(self) -> dict[str, Any]:
        """What `blank` needs."""
        own = {"padding_idx": self.padding_idx, "dtype": str(self.dtype).removeprefix("torch.")}
        return {"format": self.format.settings(), "shape": list(self.shape), **own}

    @classmethod
    def blank(
        cls, format: WeightFormat, shape: tuple[int, int], padding_idx: int | None, dtype: str = "float32"
    ) -> StoredEmbedding:
        """A layer without data; the first manifests have no dtype. Raises UnknownNameError."""
        if dtype not in _ROWS:
            raise UnknownNameError.among("type of a table's rows", dtype, _ROWS)
        return cls(format, format.blank(shape), shape, padding_idx, _ROWS[dtype])


def rounded(x: Tensor, format: BlockFormat) -> Tensor:
    """x [..., C] as the format has it, each row alone; gradients pass as if nothing was rounded (straight through)."""
    flat = x.reshape(-1, x.shape[-1])
    if not flat.numel():
        return x
    found = format.quantise(flat).dequantise(torch.float64 if x.dtype == torch.float64 else torch.float32)
    return through(x, found.to(x.dtype).view(x.shape))


def through(x: Tensor, found: Tensor) -> Tensor:
    """The values of `found` with the gradient of x."""
    return _Through.apply(x, found) if x.requires_grad and torch.is_grad_enabled() else found


class _Through(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, found: Tensor) -> Tensor:
        return found.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None
