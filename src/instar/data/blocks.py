"""Text of any size as line-aligned blocks, split by their content; only an index is held in memory.

A block is the unit of the split and of the bootstrap: neighbouring bytes are not independent, blocks of 4 KiB nearly are. A block
belongs to a split by its SHA-256, so equal text always lands in the same split and adding a file moves no other block.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from instar.errors import DataError

SIZE = 4096
TEST, VALID = 0, 1
"""Blocks whose hash is 0 mod 10 are for testing, 1 mod 10 for validation, the others for training."""


@dataclass(frozen=True)
class Corpus:
    """Blocks of one split: where they lie, and the bytes behind them (memory-mapped)."""

    texts: tuple[np.ndarray, ...]
    source: np.ndarray
    start: np.ndarray
    length: np.ndarray

    def __len__(self) -> int:
        return len(self.start)

    @property
    def bytes(self) -> int:
        return int(self.length.sum())

    def block(self, index: int) -> np.ndarray:
        """The bytes of one block."""
        start = int(self.start[index])
        return self.texts[int(self.source[index])][start : start + int(self.length[index])]


@dataclass(frozen=True)
class Split:
    """A whole text, split."""

    train: Corpus
    valid: Corpus
    test: Corpus
    sha256: str


def split_files(paths: Sequence[Path], cap: int) -> Split:
    """Index files. `cap` bounds the blocks of the validation and of the test split (those of smallest hash stay).

    Raises DataError for what is missing, empty, or no text.
    """
    if not paths:
        raise DataError("No files were given.")
    texts = []
    for path in paths:
        try:
            size = path.stat().st_size
            if path.is_dir():
                raise DataError(f"{path} is a folder; give the files in it.")
            if size == 0:
                raise DataError(f"{path} is empty.")
            texts.append(np.memmap(path, dtype=np.uint8, mode="r"))
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}.") from error
        _refuse_binary(path, texts[-1])
    return _split(texts, cap)


def split_text(text: str, cap: int) -> Split:
    """The same for text in memory."""
    return _split([np.frombuffer(text.encode(), dtype=np.uint8)], cap)


def _refuse_binary(path: Path, text: np.ndarray) -> None:
    head = np.asarray(text[: 1 << 20])
    control = np.isin(head, [*range(9), *range(14, 27), *range(28, 32), 127])
    if (head == 0).any() or control.mean() > 0.05:
        raise DataError(f"{path} is binary, not text (NUL or control bytes in its first MiB). Extract its text first.")


def _split(texts: Sequence[np.ndarray], cap: int) -> Split:
    rows: list[tuple[int, int, int]] = []
    hashes: list[bytes] = []
    whole = hashlib.sha256()
    for source, text in enumerate(texts):
        for start, length in _cut(text):
            digest = hashlib.sha256(text[start : start + length]).digest()
            whole.update(digest)
            rows.append((source, start, length))
            hashes.append(digest)
    table = np.array(rows, dtype=np.int64).reshape(-1, 3)
    digits = np.array([int.from_bytes(h, "big") % 10 for h in hashes], dtype=np.int64)
    chosen = {
        "train": np.flatnonzero((digits != TEST) & (digits != VALID)),
        "valid": _capped(np.flatnonzero(digits == VALID), hashes, cap),
        "test": _capped(np.flatnonzero(digits == TEST), hashes, cap),
    }
    for name, index in chosen.items():
        if len(index) == 0:
            total = sum(len(text) for text in texts)
            raise DataError(
                f"The text is too small: {total} bytes give {len(rows)} blocks and none for the {name} split. "
                "About 100 kB are the least to split in three; a comparison needs a few MB."
            )
    whole.update(f"cap {cap}".encode())
    corpora = {name: Corpus(tuple(texts), *(np.ascontiguousarray(c) for c in table[index].T)) for name, index in chosen.items()}
    return Split(**corpora, sha256=whole.hexdigest())


def _cut(text: np.ndarray) -> Iterator[tuple[int, int]]:
    """Start and length of each block: up to SIZE bytes, ending behind a line where there is one."""
    start, total = 0, len(text)
    while start < total:
        window = text[start : start + SIZE]
        length = len(window)
        if start + length < total:
            ends = np.flatnonzero(window == 10)
            length = int(ends[-1]) + 1 if len(ends) else length
        yield start, length
        start += length


def _capped(index: np.ndarray, hashes: list[bytes], cap: int) -> np.ndarray:
    if len(index) <= cap:
        return index
    kept = sorted(index.tolist(), key=lambda i: hashes[i])[:cap]
    return np.array(sorted(kept), dtype=np.int64)
