"""Stamping an index that has no stamp: by one process, and wholly or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from instar import files
from instar.errors import OutputError, StoreError
from instar.retrieval import manifest, tables
from instar.retrieval.journal import Journal


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """A block that writes a first base into a folder, made where there is none, and calls `manifest.write` last.

    Nobody else stamps that folder meanwhile; what a block that fails has written of a base is deleted. Raises StoreError where a
    stamp stands, or the journal or a later base of one, and for what the block raises as OSError.
    """
    try:
        files.folder(folder)
    except OutputError as error:
        raise StoreError(f"No index can be kept in {folder}: {error.__cause__ or error}. Nothing was changed.") from error
    manifest.vacant(folder)
    lock = Journal(folder, "")
    lock.lock()
    before = set(tables.bases(folder))
    try:
        manifest.vacant(folder)
        _no_orphan(before)
        yield
    except BaseException as error:
        if not (folder / manifest.NAME).exists():
            with contextlib.suppress(OSError):
                for path in set(tables.bases(folder)) - before:  # the others may be all that is left of an index
                    path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise StoreError(f"No index could be written to {folder}: {error.strerror}. The vectors are as they were.") from error
        raise
    finally:
        lock.unlock()


def _no_orphan(bases: set[Path]) -> None:
    """Raises StoreError for what only a `finish` writes: a new index would take its name, or delete it as one of its own."""
    if left := sorted(path for path in bases if not path.name.startswith("base-0000000.")):
        raise StoreError(
            f"{left[0]} is of an index whose {manifest.NAME} is gone: restore that from a backup; or move base-* away, "
            "and adopt the vectors and ids from there."
        )
