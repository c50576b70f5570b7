"""What an index is: which encoders its vectors are from, and where its base stands. `manifest.json`, replaced at once."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from instar import files
from instar.errors import GenerationError, OutputError, StoreError
from instar.interfaces import Generation
from instar.retrieval import journal

SCHEMA, NAME = 1, "manifest.json"
_PART, _PARTS = 65536, 64


@dataclass(frozen=True)
class Manifest:
    """The stamp of an index."""

    kind: str
    """exact, faiss, usearch."""
    index: str
    """Identity: what belongs to this index carries it."""
    generations: list[Generation]
    """Of the base; `begin` in the journal opens more."""
    base: Mapping[str, Any] = field(default_factory=dict)
    """Files of the base with their prints, and what the kind has to know of them."""
    epoch: int = 0
    """Bases that were written."""
    first: int = 1
    """The first segment that is not in the base."""
    padding: Mapping[str, Any] | None = None
    """Where old and new rows share one space: see `retrieval.padded`."""
    metric: str = "cosine"
    normalised: bool = True


def read(folder: Path) -> bytes:
    """The manifest as it stands. Raises GenerationError where there is none, StoreError."""
    try:
        return (folder / NAME).read_bytes()
    except FileNotFoundError:
        raise GenerationError(
            f"{folder} holds no {NAME}: nobody said which encoder made these vectors. Say so once with `instar encoder adopt`, "
            "or in Python with instar.retrieval.opening.adopt_index(url, Generation(0, fingerprint, dim))."
        ) from None
    except OSError as error:
        raise StoreError(f"{folder / NAME} cannot be read: {error.strerror}.") from error


def parse(content: bytes, folder: Path, kind: str) -> Manifest:
    """Raises StoreError for a manifest that is damaged, of another schema, or of another kind of index."""
    try:
        table = json.loads(content)
        if table.pop("schema") != SCHEMA:
            raise ValueError("it is of another schema; use the version of Instar that wrote it")
        found = Manifest(**{**table, "generations": [Generation(**one) for one in table["generations"]]})
        if found.kind != kind or not found.generations or not isinstance(found.first, int):
            raise ValueError(f"it describes an index of kind '{found.kind}', expected '{kind}'")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{folder / NAME} is no manifest of an index: {error}. Restore it from a backup.") from error
    return found


def write(folder: Path, manifest: Manifest) -> None:
    """Replace the manifest, durably. Raises StoreError; then the old one still stands."""
    try:
        files.write_json(folder / NAME, {"schema": SCHEMA, **asdict(manifest)})
        journal.sync(folder)
    except (OutputError, OSError) as error:
        raise StoreError(f"The index in {folder} could not be changed: {error} Every row is as it was.") from error


def print_of(path: Path) -> dict[str, Any]:
    """Size and a hash over 64 places of a file: enough to notice that somebody else wrote it, without reading all of it.

    Raises StoreError.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.sha256(str(size).encode())
            if size <= _PART * _PARTS:
                digest.update(file.read())
            else:
                for part in range(_PARTS):
                    file.seek((size - _PART) * part // (_PARTS - 1))
                    digest.update(file.read(_PART))
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}.") from error
    return {"name": path.name, "size": size, "sha256": digest.hexdigest()}


def unchanged(path: Path, expected: Mapping[str, Any]) -> None:
    """Raises StoreError when a file of the base is gone or is not the one that was stamped."""
    if print_of(path) != {**expected, "name": path.name}:
        raise StoreError(
            f"{path} is not the file that was stamped: another program has written it since. Restore it, or adopt it as a new "
            "index (that forgets a change of encoder that is under way)."
        )


def vacant(folder: Path) -> None:
    """Raises StoreError where a stamp stands, or where changes of a lost one do."""
    if (folder / NAME).exists() or any(folder.glob("*.segment")):
        raise StoreError(
            f"{folder} holds an index, or the journal of one, already: open it; or move {NAME} and *.segment away to begin anew."
        )
