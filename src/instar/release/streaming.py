"""Writing a safetensors file tensor by tensor, so that memory holds one of them at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from instar.errors import CheckpointError, OutputError

NAMES = {
    **{torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"},
    **{torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8"},
    **{torch.int16: "I16", torch.int32: "I32", torch.int64: "I64"},
}
"""The types that the format knows."""


@dataclass(frozen=True)
class Part:
    """A tensor to be written: what it is, and how to get it."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    get: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def write(path: Path, parts: Mapping[str, Part]) -> None:
    """Write a new file, durably. Raises OutputError; CheckpointError for a type that the format does not know."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name, part in parts.items():
        if part.dtype not in NAMES:
            raise CheckpointError(f"{name} is of type {part.dtype}, which safetensors does not know.")
        header[name] = {
            "dtype": NAMES[part.dtype],
            "shape": list(part.shape),
            "data_offsets": [place, place + part.nbytes],
        }
        place += part.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    try:
        with path.open("xb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name, part in parts.items():
                tensor = part.get().detach().cpu().contiguous()
                if tensor.dtype != part.dtype or tuple(tensor.shape) != part.shape:
                    raise CheckpointError(f"{name} is {tensor.dtype} {list(tensor.shape)}, not as its file says.")
                file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OutputError(f"Cannot write {path}: {error.strerror}.") from error
