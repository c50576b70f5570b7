"""Public data sets by name: found under INSTAR_DATA, or fetched once into a cache, and always held to their hash."""

from __future__ import annotations

import hashlib
import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from instar import extras
from instar.errors import DataError, MissingExtraError, UnknownNameError

_LIST = Path(__file__).with_name("pinned.toml")


@dataclass(frozen=True)
class File:
    """One file of a data set: where it lies, where it comes from, and what it must be."""

    path: PurePosixPath
    url: str
    digest: str
    """SHA-256, or the SHA-1 of git's blob where a file of a commit was never read where its hash was taken."""


def names() -> list[str]:
    """The data sets that have a name."""
    return sorted(_table(_LIST))


def locate(name: str, listing: Path = _LIST) -> list[Path]:
    """The files of a data set, verified. Raises UnknownNameError, DataError, MissingExtraError."""
    table = _table(listing)
    if name not in table:
        raise UnknownNameError.among("data set", name, table)
    return [_find(file, name) for file in _files(table[name], name)]


def cache() -> Path:
    """Where fetched files are kept: the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "instar"


def _table(listing: Path) -> dict[str, Any]:
    return tomllib.loads(listing.read_text("utf-8"))


def _files(entry: dict[str, Any], name: str) -> list[File]:
    """A listing is no more trusted than a download: its paths stay inside the folder and its addresses are https."""
    found = []
    for row in entry["files"]:
        path = PurePosixPath(row["path"])
        if path.is_absolute() or not re.fullmatch(r"[A-Za-z0-9_.\-/]+", row["path"]) or ".." in path.parts:
            raise DataError(f"The data set {name} lists the path '{row['path']}', which could leave the data folder.")
        digest = row.get("sha256", row.get("git_blob", ""))
        pattern = r"[0-9a-f]{64}" if "sha256" in row else r"[0-9a-f]{40}"
        if not row["url"].startswith("https://") or not re.fullmatch(pattern, digest):
            raise DataError(f"The data set {name} lists '{row['path']}' without an https address and a SHA-256 (or git blob).")
        found.append(File(path, row["url"], digest))
    return found


def _find(file: File, name: str) -> Path:
    for folder in (os.environ.get("INSTAR_DATA"), str(cache())):
        if folder and (path := Path(folder) / file.path).is_file():
            _hold(path, file, name)
            return path
    path = cache() / file.path
    try:
        pooch = extras.require("pooch", "data")
    except MissingExtraError as error:
        raise MissingExtraError(f"{error} Or fetch {file.url} yourself and {_hint(file)}") from error
    try:
        known = f"sha256:{file.digest}" if len(file.digest) == 64 else None
        found = Path(pooch.retrieve(file.url, known_hash=known, fname=path.name, path=path.parent))
    except (OSError, ValueError) as error:  # requests' errors are OSErrors; a wrong hash is a ValueError
        raise DataError(f"Cannot fetch {file.url}: {error}. Fetch it yourself and {_hint(file)}") from error
    _hold(found, file, name)
    return found


def _hold(path: Path, file: File, name: str) -> None:
    """Raise DataError for another file than the pinned one."""
    content = path.read_bytes()
    if len(file.digest) == 64:
        received = hashlib.sha256(content).hexdigest()
    else:
        received = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    if received != file.digest:
        kind = "SHA-256" if len(file.digest) == 64 else "git blob"
        raise DataError(f"{path} is not the pinned file of {name}: {kind} {received}, expected {file.digest}. Remove it.")


def _hint(file: File) -> str:
    return f"set INSTAR_DATA to a folder that holds it as {file.path}."
