"""What changed since the base of an index was written: a folder of numbered segments, each of which is there whole or not at all.

A change (`begin`, `add`, `move`, `remove`, `rollback`) is one file: written under another name, flushed to the disk, renamed to
the next number, and the folder flushed. Killed at any moment, the change has happened or it has not. Readers look for the next
number: one failed `stat` a search. One writer at a time, held by a lock that the system frees when the process ends.

A segment is  MAGIC · length of the head (8 bytes) · head (JSON) · vectors (float32, little endian) · SHA-256 of all before.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from instar.errors import StoreError
from instar.interfaces import Floats, Id

MAGIC = b"instar\x00\x01"
KINDS = ("begin", "add", "move", "remove", "rollback", "void")
_NAME = re.compile(r"\d{10}\.segment")
_LEFT = (".writing.", ".manifest.json.", ".snapshot.json.")
"""Beginnings of names of what a killed writer was about to put in place."""


@dataclass(frozen=True)
class Segment:
    """One change."""

    kind: str
    generation: int
    """begin, add, move: into which; remove: −1; rollback: which is gone; void: a move that a rollback took back."""
    ids: Sequence[Id] = ()
    vectors: Floats | None = None
    """[N, dim] of add and move."""
    details: dict[str, Any] | None = None
    """begin: the generation."""


class Journal:
    """The segments of one index (`index` is its identity: segments of another one are refused)."""

    def __init__(self, folder: Path, index: str) -> None:
        self.folder = folder
        self.index = index
        self._lock: int | None = None

    def path(self, number: int) -> Path:
        """Where a segment stands."""
        return self.folder / f"{number:010d}.segment"

    def numbers(self, first: int) -> range:
        """The segments from `first` on. Raises StoreError where one is missing between others."""
        try:
            found = sorted(int(name[:10]) for name in os.listdir(self.folder) if _NAME.fullmatch(name))  # noqa: PTH208
        except OSError as error:
            raise _unreadable(self.folder, error) from error
        found = [number for number in found if number >= first]
        if found != list(range(first, first + len(found))):
            lost = min(set(range(first, found[-1])) - set(found))
            raise StoreError(f"{self.path(lost)} is missing though later changes are there: restore the folder from a backup.")
        return range(first, first + len(found))

    def read(self, number: int, *, vectors: bool = True) -> Segment | None:
        """A segment, or None where there is none yet. Raises StoreError for a torn, altered or foreign file.

        vectors: False reads the head alone, and checks no more than that it can be read.
        """
        path = self.path(number)
        try:
            with path.open("rb") as file:
                start = file.read(16)
                size = int.from_bytes(start[8:], "little")
                if start[:8] != MAGIC or size > os.fstat(file.fileno()).st_size:
                    raise ValueError("it is no segment, or it is torn")
                head = file.read(size)
                table = json.loads(head)
                if table["index"] != self.index or table["number"] != number:
                    raise ValueError("it belongs to another index or place")
                kept = _checked(file.read(), start + head, table) if vectors else None
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unreadable(path, error) from error
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{path} cannot be used: {error}. Nothing was changed; restore that file from a backup of the folder."
            ) from error
        return Segment(table["kind"], table["generation"], table["ids"], kept, table["details"])

    def append(self, number: int, segment: Segment) -> None:
        """Write segment `number`, durably and at once. Raises StoreError; then nothing has changed."""
        if not self.locked:
            raise StoreError(f"The lock of {self.folder} is not held, or its file went: nothing was changed. Call again.")
        self._write(number, segment)

    def taken_back(self, numbers: range) -> set[int]:
        """Those that a later rollback made void, itself with them. Raises StoreError."""
        found: set[int] = set()
        since: dict[int, list[int]] = {}
        for number in numbers:
            segment = self.read(number, vectors=False)
            if segment is None:
                raise StoreError(f"{self.path(number)} is gone: restore the folder from a backup.")
            if segment.kind == "begin":
                since[segment.generation] = []
            if segment.generation in since:
                since[segment.generation].append(number)
            if segment.kind == "rollback":
                if segment.generation not in since:
                    raise StoreError(f"{self.path(number)} takes back a generation that was not begun: restore it from a backup.")
                found.update(since.pop(segment.generation))
        return found

    def void(self, first: int) -> None:
        """Give back the space of what was rolled back: the numbers stay taken. Raises StoreError."""
        for number in sorted(self.taken_back(self.numbers(first))):
            segment = self.read(number, vectors=False)
            if segment is not None and segment.kind in ("add", "move"):
                self._write(number, Segment("void", segment.generation))

    def drop(self, before: int) -> None:
        """Segments below a number go, the oldest first; a missing one is no error. So do leftovers of killed writers."""
        with contextlib.suppress(FileNotFoundError):
            for name in sorted(os.listdir(self.folder)):  # noqa: PTH208
                if (_NAME.fullmatch(name) and int(name[:10]) < before) or name.startswith(_LEFT):
                    (self.folder / name).unlink(missing_ok=True)

    @property
    def locked(self) -> bool:
        """Whether this object is the one writer: it holds the lock, and the file is still the one that others would lock."""
        return self._lock is not None and _same_file(self._lock, self.folder / "lock")

    def lock(self) -> None:
        """Become the one writer; nothing happens if this object is it already. Raises StoreError when another process is."""
        if self.locked:
            return
        self.unlock()
        path = self.folder / "lock"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StoreError(f"{path} cannot be written ({error.strerror}), so the index can only be read.") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(descriptor, 100).decode("ascii", "replace").strip()
            os.close(descriptor)
            raise StoreError(
                f"{self.folder} is being changed by another writer (process {holder or 'unknown'}). One at a time: wait "
                "for it, or stop it; reading and searching go on meanwhile."
            ) from error
        except OSError as error:
            os.close(descriptor)
            raise StoreError(f"{path} cannot be locked ({error.strerror}): changes need a file system that has locks.") from error
        self._lock = descriptor
        if not self.locked:
            self.unlock()
            raise StoreError(f"{self.folder} was removed or replaced at this moment: nothing was changed. Call again.")
        with contextlib.suppress(OSError):  # a full disk: the name of the holder is a courtesy
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)

    def unlock(self) -> None:
        """Let another process write."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _write(self, number: int, segment: Segment) -> None:
        values = np.ascontiguousarray(segment.vectors, "<f4") if segment.vectors is not None else np.empty((0, 0), "<f4")
        table = {
            **{"index": self.index, "number": number, "kind": segment.kind, "generation": segment.generation},
            **{"ids": list(segment.ids), "details": segment.details, "shape": list(values.shape)},
        }
        head = json.dumps(table).encode()
        parts = [MAGIC + len(head).to_bytes(8, "little") + head, values.data.cast("B") if values.size else b""]
        digest = hashlib.sha256()
        temporary = ""
        try:
            descriptor, temporary = tempfile.mkstemp(dir=self.folder, prefix=".writing.")
            with os.fdopen(descriptor, "wb") as file:
                for part in parts:
                    digest.update(part)
                    file.write(part)
                file.write(digest.digest())
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)  # noqa: PTH101 - mkstemp makes private files; readers may be other users
            os.replace(temporary, self.path(number))  # noqa: PTH105
        except OSError as error:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
            raise StoreError(
                f"This change could not be written to {self.folder}: {error.strerror}. None of its rows were taken, all others "
                "are as they were; make room or give access, and do it again."
            ) from error
        try:
            sync(self.folder)
        except OSError as error:
            raise StoreError(
                f"This change stands in {self.folder}, but the system could not say that it outlives a loss of power "
                f"({error.strerror}): look after the disk."
            ) from error


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def sync(folder: Path) -> None:
    """Flush a folder's own entries to the disk. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _checked(rest: bytes, before: bytes, table: dict[str, Any]) -> Floats | None:
    rows, dim = table["shape"]
    if len(rest) != rows * dim * 4 + 32:
        raise ValueError(f"it should hold {rows} vectors of {dim}, but is cut short or too long")
    digest = hashlib.sha256(before)
    digest.update(memoryview(rest)[:-32])
    if digest.digest() != rest[-32:]:
        raise ValueError("its checksum is wrong")
    if table["kind"] not in KINDS or (rows and rows != len(table["ids"])):
        raise ValueError(f"'{table['kind']}' of {len(table['ids'])} ids and {rows} vectors is no change")
    return np.frombuffer(rest, "<f4", rows * dim).reshape(rows, dim) if dim else None


def _unreadable(path: Path, error: OSError) -> StoreError:
    return StoreError(f"{path} cannot be read: {error.strerror}.")
