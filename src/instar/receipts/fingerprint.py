"""What a model is, to the bit: a table of its tensors, and one fingerprint of the table.

The fingerprint is SHA-256 over one line a tensor, sorted by name: name, type, shape, SHA-256 of the bytes. Tensors that a
checkpoint leaves out are left out: buffers that are not persistent, and all but the first name (in the model's own order) of a
tensor that several names share. So a model and the folder that `save_pretrained` wrote of it have the same fingerprint.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import safetensors
import torch
from torch import Tensor, nn

from instar.errors import CheckpointError
from instar.receipts import bits

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class Entry:
    """One tensor, as a line of the table."""

    dtype: str
    shape: tuple[int, ...]
    sha256: str
    persistent: bool = True

    @property
    def nbytes(self) -> int:
        """Bytes, as the type and shape say."""
        return prod(self.shape) * self.torch_dtype.itemsize

    @property
    def torch_dtype(self) -> torch.dtype:
        """The type as torch knows it."""
        return getattr(torch, self.dtype)


Table = dict[str, Entry]


def entry(tensor: Tensor, sha256: str, persistent: bool = True) -> Entry:
    """The line of a tensor whose digest is known."""
    return Entry(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), sha256, persistent)


def named(model: nn.Module) -> dict[str, tuple[Tensor, bool]]:
    """Every distinct parameter and buffer under its first name, and whether checkpoints hold it."""
    found: dict[str, tuple[Tensor, bool]] = {}
    seen: set[int] = set()
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        for own, skipped in ((module._parameters, ()), (module._buffers, module._non_persistent_buffers_set)):
            for name, tensor in own.items():
                if tensor is not None and id(tensor) not in seen:
                    seen.add(id(tensor))
                    found[prefix + name] = (tensor, name not in skipped)
    return found


def table(model: nn.Module) -> Table:
    """The table of a live model. One pass over all its bytes. Raises ReceiptError for tensors without data."""
    tensors = named(model)
    hashes = bits.digests([bits.parts(tensor, name) for name, (tensor, _) in tensors.items()])
    return {name: entry(*tensors[name][:1], sha256, tensors[name][1]) for name, sha256 in zip(tensors, hashes, strict=True)}


def combine(lines: Mapping[str, Entry]) -> str:
    """The fingerprint of a table."""
    total = hashlib.sha256()
    for name, line in sorted(lines.items()):
        if line.persistent:
            total.update(json.dumps([name, line.dtype, line.shape, line.sha256]).encode() + b"\n")
    return total.hexdigest()


def fingerprint(target: nn.Module | str | Path) -> str:
    """The fingerprint of a live model, of a model folder, or of one safetensors file. One pass over the bytes.

    Raises CheckpointError when a folder holds no (or no whole) safetensors checkpoint, ReceiptError for a model without data.
    """
    if isinstance(target, nn.Module):
        return combine(table(target))
    lines: Table = {}
    for path in _files(Path(target)):
        for name, tensor in _tensors(path):
            lines[name] = entry(tensor, bits.digest([tensor]))
    return combine(lines)


def _files(path: Path) -> list[Path]:
    """The safetensors files of a checkpoint: one, or the shards that its index names."""
    if path.is_file():
        return [path]
    if (path / WEIGHTS).is_file():
        return [path / WEIGHTS]
    if not (path / INDEX).is_file():
        raise CheckpointError(f"{path} holds neither {WEIGHTS} nor {INDEX}: there are no weights to take a fingerprint of.")
    try:
        shards = set(json.loads((path / INDEX).read_text("utf-8"))["weight_map"].values())
        # The index is untrusted: only plain names of files in this folder are followed.
        if any(Path(shard).name != shard for shard in shards):
            raise ValueError("a shard lies outside of the folder")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path / INDEX} is no index of shards: {error}.") from error
    return [path / shard for shard in sorted(shards)]


def _tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a file, one in memory at a time."""
    if not path.is_file():  # a pipe would be waited for
        raise CheckpointError(f"There is no file {path}.")
    try:
        with safetensors.safe_open(str(path), framework="pt", device="cpu") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                yield name, file.get_tensor(name)
    except (safetensors.SafetensorError, OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path} is no safetensors file, or a truncated one ({error}).") from error
