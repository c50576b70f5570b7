"""Safetensors files tensor by tensor, so that memory holds one of them at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import safetensors
import torch
from torch import Tensor

from instar.errors import CheckpointError, OutputError

NAMES = {
    **{torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"},
    **{torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8"},
    **{torch.int16: "I16", torch.int32: "I32", torch.int64: "I64"},
}
"""The types that the format knows."""
_TYPES = {name: dtype for dtype, name in NAMES.items()}


@dataclass(frozen=True)
class Part:
    """A tensor to be written: what it is, and how to get it."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    get: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    @classmethod
    def held(cls, tensor: Tensor) -> Part:
        """A tensor that is in memory; of a type that the format does not know, its bytes."""
        kept = tensor if tensor.dtype in NAMES else tensor.contiguous().reshape(-1).view(torch.uint8)
        return cls(kept.dtype, tuple(kept.shape), lambda: kept)


def parts(path: Path) -> dict[str, Part]:
    """What a file holds, without reading it. Raises CheckpointError for a file that is none, or damaged."""

    def getter(name: str) -> Callable[[], Tensor]:
        def get() -> Tensor:
            with safetensors.safe_open(str(path), framework="pt", device="cpu") as file:
                found: Tensor = file.get_tensor(name)
                return found

        return get

    if not path.is_file():  # a pipe would be waited for
        raise CheckpointError(f"There is no file {path}.")
    try:
        with safetensors.safe_open(str(path), framework="pt", device="cpu") as file:
            found = {}
            for name in file.keys():  # noqa: SIM118 - not a dict
                part = file.get_slice(name)
                found[name] = Part(_TYPES[part.get_dtype()], tuple(part.get_shape()), getter(name))
            return found
    except (safetensors.SafetensorError, OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path} is no safetensors file, or a truncated one ({error}).") from error


def write(path: Path, parts: Mapping[str, Part]) -> None:
    """Write a new file, durably. Raises OutputError; CheckpointError for a type that the format does not know."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    place = 0
    ordered = sorted(parts.items(), key=lambda pair: -pair[1].dtype.itemsize)  # so that each lies at a multiple of its size
    for name, part in ordered:
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
            for name, part in ordered:
                tensor = part.get().detach().cpu().contiguous()
                if tensor.dtype != part.dtype or tuple(tensor.shape) != part.shape:
                    raise CheckpointError(f"{name} is {tensor.dtype} {list(tensor.shape)}, not as its file says.")
                file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OutputError(f"Cannot write {path}: {error.strerror}.") from error
