"""Reading tensors from untrusted safetensors files. Nothing is unpickled."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors
from safetensors.torch import save
from torch import Tensor

from instar import files
from instar.errors import CheckpointError

_SHOWN = 8


def write(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Replace `path` at once by these tensors. Raises OutputError."""
    files.write(path, save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, metadata))


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors (on the CPU) and the metadata of a safetensors file. Raises CheckpointError."""
    if not path.is_file():
        raise CheckpointError(f"There is no file {path}.")
    try:
        with safetensors.safe_open(str(path), framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118 - not a dict
    except (safetensors.SafetensorError, OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path} is no safetensors file, or a truncated one ({error}). Nothing was loaded.") from error


def compare(path: Path, received: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError that lists every missing or unexpected key and every wrong shape."""
    wrong = [f"{name} is missing" for name in expected if name not in received]
    wrong += [f"{name} is unexpected" for name in received if name not in expected]
    wrong += [
        f"{name} has shape {tuple(received[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in received and received[name].shape != tensor.shape
    ]
    wrong += [
        f"{name} holds {received[name].dtype} instead of {tensor.dtype}"
        for name, tensor in expected.items()
        if name in received and received[name].is_floating_point() != tensor.is_floating_point()
    ]
    if wrong:
        more = f", and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise CheckpointError(f"{path} does not fit this model: {'; '.join(wrong[:_SHOWN])}{more}. Nothing was loaded.")
