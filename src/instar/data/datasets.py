"""Public data sets by name: found under `INSTAR_DATA`, else fetched once from a pinned address; always checked by SHA-256."""

from __future__ import annotations

import hashlib
import os
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from instar.errors import DataError, UnknownNameError
from instar.extras import require


@dataclass(frozen=True)
class Source:
    """One file of a data set."""

    path: str
    url: str
    sha256: str


@cache
def known() -> dict[str, list[Source]]:
    """The files of every named data set."""
    table: dict[str, Any] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))
    return {name: [Source(**entry) for entry in value["files"]] for name, value in table.items()}


def locate(name: str) -> list[Path]:
    """The files of a data set, checked.

    Raises UnknownNameError; DataError for a file that is not what it should be, or that cannot be had.
    """
    if name not in known():
        raise UnknownNameError.among("data set", name, known())
    return [_one(source) for source in known()[name]]


def _one(source: Source) -> Path:
    relative = PurePosixPath(source.path)
    if relative.is_absolute() or ".." in relative.parts:
        raise DataError(f"'{source.path}' points outside the data folder.")
    folder = os.environ.get("INSTAR_DATA")
    if folder:
        path = Path(folder) / relative
        if path.is_file():
            return _checked(path, source)
    cache_folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "instar"
    path = cache_folder / relative
    if path.is_file():
        return _checked(path, source)
    return _fetch(source, path)


def _checked(path: Path, source: Source) -> Path:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != source.sha256:
        raise DataError(f"{path} has the SHA-256 {found[:12]}…, expected {source.sha256[:12]}…. Delete it to fetch it again.")
    return path


def _fetch(source: Source, path: Path) -> Path:
    pooch = require("pooch", extra="data")
    try:
        pooch.retrieve(source.url, known_hash=f"sha256:{source.sha256}", fname=path.name, path=path.parent)
    except (OSError, ValueError) as error:  # requests' errors are OSErrors; a wrong hash is a ValueError
        raise DataError(
            f"{source.url} cannot be fetched ({type(error).__name__}). Without a network, put the file at "
            f"{source.path} under a folder and set INSTAR_DATA to it."
        ) from error
    return path
