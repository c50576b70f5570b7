"""A graph or cells that took minutes to build, kept beside the journal so that opening an index need not build them again.

A snapshot is worth nothing without the journal: it holds what a space had after a certain segment, and is passed over when it is
damaged, missing, or of a change that was rolled back. The writer makes one whenever the rows since the last are half as many as
those in it, so that all snapshots together cost a small multiple of the last.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instar import files
from instar.errors import OutputError, StoreError
from instar.retrieval import manifest, tables
from instar.retrieval.approximate import ApproximateSpace

if TYPE_CHECKING:
    from instar.retrieval.held import Held

NAME = "snapshot.json"
_LEAST = 10_000
"""Rows below which building anew is quick."""


@dataclass(frozen=True)
class Snapshot:
    """What a space held."""

    index: str
    begin: int
    """The segment that opened its generation."""
    number: int
    """The last segment that is in it."""
    slots: int
    file: dict[str, Any]
    """Name and print."""


def keep(folder: Path, index: str, number: int, held: Held) -> None:
    """Write a snapshot of the newest generation when it has grown enough. number: the last segment that is in it."""
    newest = held.generations[-1].number
    space, _ = held.space(newest)
    if newest not in held.begun or not isinstance(space, ApproximateSpace) or not space.built:
        return
    last = 0 if held.snapshot is None else held.snapshot[0].slots
    if len(space.alive) - last < max(_LEAST, last // 2):
        return
    path = folder / f"snapshot-{held.begun[newest]:010d}-{number:010d}"
    with contextlib.suppress(OSError, OutputError):  # a disk that does not take it harms nothing
        print_ = tables.placed_by(path, space.save)
        made = Snapshot(index, held.begun[newest], number, len(space.alive), print_)
        files.write_json(folder / NAME, asdict(made))
        held.snapshot = made, path
        drop(folder, held.snapshot)


def find(folder: Path, index: str) -> Snapshot | None:
    """The snapshot of an index, if there is a whole one."""
    try:
        found = Snapshot(**json.loads((folder / NAME).read_bytes()))
        manifest.unchanged(folder / str(found.file["name"]), found.file)
    except (OSError, ValueError, TypeError, KeyError, StoreError):
        return None
    return found if found.index == index else None


def drop(folder: Path, kept: tuple[Snapshot, Path] | None) -> None:
    """Delete all snapshots but one. Raises OSError."""
    if kept is None:
        (folder / NAME).unlink(missing_ok=True)
    for path in folder.glob("snapshot-*"):
        if kept is None or path != kept[1]:
            path.unlink(missing_ok=True)
