"""The state of AdamW as a safetensors file, written extent by extent, and read back as a dictionary that is only mapped."""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
import struct
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from instar.errors import CheckpointError, OutputError
from instar.optim.offload.layout import Layout

_NAMES = {torch.float32: "F32", torch.float64: "F64", torch.float16: "F16", torch.bfloat16: "BF16"}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}
MOMENTS = ("exp_avg", "exp_avg_sq")


def export(
    path: Path,
    layout: Layout,
    params: Sequence[Tensor],
    steps: Sequence[int],
    groups: list[dict[str, Any]],
    extent: Callable[[int], Tensor],
) -> None:
    """Replace `path` at once by the state: tensors state.N.exp_avg, state.N.exp_avg_sq and state.N.step of every parameter N that
    has made a step; the groups stand in the metadata.

    Args:
        extent: gives the buffer of a subgroup's moments; what it gave before may be overwritten by then.

    One extent at a time is in memory. Raises OutputError.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt", "param_groups": json.dumps(groups)}}
    places: dict[tuple[int, str], int] = {}
    end = 0
    for n, name, dtype in _entries(params, steps):
        shape = [] if name == "step" else list(params[n].shape)
        places[n, name], size = end, math.prod(shape) * dtype.itemsize
        header[f"state.{n}.{name}"] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    temporary = ""
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            _put(file.fileno(), memoryview(struct.pack("<Q", len(text)) + text), 0)
            for number, subgroup in enumerate(layout.subgroups):
                pieces = [piece for piece in subgroup.pieces if steps[piece.index]]
                planes = layout.moments(extent(number), number) if pieces else ()
                for name, plane in zip(MOMENTS, planes, strict=False):
                    for piece in pieces:
                        at = start + places[piece.index, name] + piece.start * plane.element_size()
                        _put(file.fileno(), _bytes(plane[piece.offset : piece.offset + piece.length]), at)
            for n, step in enumerate(steps):
                if step:
                    _put(file.fileno(), memoryview(struct.pack("<f", step)), start + places[n, "step"])
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # noqa: PTH101 - mkstemp makes private files
        os.replace(temporary, path)  # noqa: PTH105
    except OSError as error:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise OutputError(f"Cannot write {path}: {error.strerror}. What stood there before is unchanged.") from error


def read(path: str | Path, *, shared: bool = False) -> dict[str, Any]:
    """A dictionary for `load_state_dict` of this optimiser or of `torch.optim.AdamW`, whose tensors are mapped from the file.

    Args:
        shared: whether what is written into the tensors goes into the file, instead of into memory.

    Raises CheckpointError for a file that is not one of `export`.
    """
    try:
        with Path(path).open("rb+" if shared else "rb") as file:
            kind = mmap.ACCESS_WRITE if shared else mmap.ACCESS_COPY
            whole = mmap.mmap(file.fileno(), 0, access=kind)
        (length,) = struct.unpack("<Q", whole[:8])
        header = json.loads(whole[8 : 8 + length])
        groups = json.loads(header.pop("__metadata__")["param_groups"])
        state: dict[int, dict[str, Tensor]] = {}
        for name, entry in header.items():
            _, n, key = name.split(".")
            first, last = entry["data_offsets"]
            dtype = _DTYPES[entry["dtype"]]
            count = (last - first) // dtype.itemsize
            flat = (
                torch.frombuffer(whole, dtype=dtype, count=count, offset=8 + length + first)
                if count
                else torch.empty(0, dtype=dtype)
            )
            state.setdefault(int(n), {})[key] = flat.view(entry["shape"])
    except (OSError, ValueError, KeyError, TypeError, struct.error, RuntimeError) as error:
        raise CheckpointError(
            f"{path} is no exported optimiser state, or a truncated one ({error}). Nothing was loaded."
        ) from error
    return {"state": dict(sorted(state.items())), "param_groups": groups}


def _entries(params: Sequence[Tensor], steps: Sequence[int]) -> list[tuple[int, str, torch.dtype]]:
    """Parameter, name and type of every tensor, the widest types first, so that all are aligned without gaps."""
    known = [n for n, step in enumerate(steps) if step]
    found = [(n, name, params[n].dtype) for n in known for name in MOMENTS] + [(n, "step", torch.float32) for n in known]
    return sorted(found, key=lambda entry: -entry[2].itemsize)


def _put(descriptor: int, data: memoryview, at: int) -> None:
    """All of it: one pwrite takes less on a disk that is nearly full, and never more than 2 GiB."""
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:], at + done)


def _bytes(plane: Tensor) -> memoryview:
    return plane.view(torch.uint8).cpu().numpy().data
