"""Bytes of any amount, cut into blocks that are split by their content.

A block is at most 4 KiB and ends at a newline where there is one. Its SHA-256 modulo 10 decides where it goes (0 test, 1 valid,
the rest train), so a repeated block lands in one split and adding a file moves nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from instar.errors import DataError

SIZE = 4096
_PROBE = 1 << 20
_CONTROL = np.array([c for c in range(32) if c not in (8, 9, 10, 12, 13, 27)] + [127], dtype=np.uint8)

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Blocks:
    """Blocks of some sources, read when they are asked for: the index takes 20 bytes a block, the bytes stay on disk."""

    sources: Sequence[Bytes]
    source: npt.NDArray[np.int32]
    offset: npt.NDArray[np.int64]
    length: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offset)

    def __getitem__(self, index: int) -> Bytes:
        start = self.offset[index]
        return self.sources[self.source[index]][start : start + self.length[index]]

    @property
    def bytes(self) -> int:
        """Bytes of all blocks."""
        return int(self.length.sum())


@dataclass(frozen=True)
class Split:
    """What `split` returns; `found` counts blocks of each split before the caps."""

    train: Blocks
    valid: Blocks
    test: Blocks
    sha256: str
    found: dict[str, int]


def open_text(path: Path) -> Bytes:
    """The bytes of a text file, mapped and not read. Raises DataError for what is no text."""
    if path.is_dir():
        raise DataError(f"{path} is a folder; name the text files in it.")
    if not path.is_file():
        raise DataError(f"There is no file {path}.")
    try:
        size = path.stat().st_size
        if size == 0:
            raise DataError(f"{path} is empty.")
        content = np.memmap(path, dtype=np.uint8, mode="r")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    head = np.asarray(content[:_PROBE])
    nul, control = int((head == 0).sum()), float(np.isin(head, _CONTROL).mean())
    if nul or control > 0.02:
        raise DataError(
            f"{path} is no plain text: {nul} NUL bytes and {control:.1%} control characters in its first {len(head)} bytes. "
            "Unpack archives and convert UTF-16 to UTF-8 first."
        )
    return content


def cut(content: Bytes) -> Iterator[tuple[int, bytes]]:
    """(offset, block) of every block: up to the last newline within 4096 bytes, or 4096 bytes when there is none."""
    start = 0
    while start < len(content):
        window = content[start : start + SIZE].tobytes()
        end = len(window)
        if start + end < len(content):
            end = window.rfind(b"\n") + 1 or end
        yield start, window[:end]
        start += end


def split(sources: Sequence[Bytes], cap: int) -> Split:
    """Cut and split the sources; valid and test keep the `cap` blocks with the smallest hashes, each content once."""
    held: dict[str, dict[bytes, tuple[int, int, int]]] = {"test": {}, "valid": {}}
    train: list[tuple[int, int, int]] = []
    found = {"train": 0, "valid": 0, "test": 0}
    whole = hashlib.sha256(f"line blocks of {SIZE}, cap {cap}".encode())
    parts: list[npt.NDArray[np.int64]] = []
    for number, content in enumerate(sources):
        for offset, block in cut(content):
            digest = hashlib.sha256(block).digest()
            whole.update(digest)
            place = (number, offset, len(block))
            name = {0: "test", 1: "valid"}.get(int.from_bytes(digest, "big") % 10, "train")
            found[name] += 1
            if name == "train":
                train.append(place)
                if len(train) == 1 << 16:  # a list of tuples takes ten times the memory of the array
                    parts.append(np.array(train, dtype=np.int64))
                    train.clear()
                continue
            kept = held[name]
            kept.setdefault(digest, place)
            if len(kept) > 2 * cap + 1024:
                held[name] = {d: kept[d] for d in sorted(kept)[:cap]}
    parts.append(np.array(train, dtype=np.int64).reshape(-1, 3))
    rest = {n: np.array(sorted(h[d] for d in sorted(h)[:cap]), dtype=np.int64).reshape(-1, 3) for n, h in held.items()}
    tables = {"train": np.concatenate(parts), **rest}
    made = {n: Blocks(sources, t[:, 0].astype(np.int32), t[:, 1].copy(), t[:, 2].copy()) for n, t in tables.items()}
    return Split(**made, sha256=whole.hexdigest(), found=found)
