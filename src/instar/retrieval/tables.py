"""Vectors and ids as files: a `.npy` table and a JSON list, written piece by piece and put in place at once."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from instar.errors import DataError, StoreError
from instar.interfaces import Floats, Generation, Id
from instar.retrieval import checking, journal, manifest

_BASE = re.compile(r"base-\d{7}\.(npy|ids\.json|faiss|usearch)")


def table(source: Floats | str | Path, dim: int) -> Floats:
    """float32 [N, dim] of unit rows from an array, or mapped from a `.npy`. Raises DataError, ShapeError, StoreError."""
    found: Any = source
    if not isinstance(source, np.ndarray):
        try:
            found = np.load(Path(source), mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise StoreError(f"{source} cannot be read as a .npy table of numbers: {error}.") from error
        if not isinstance(found, np.ndarray):
            raise StoreError(f"{source} is an archive of arrays; give one array as a .npy file.")
    if found.dtype != np.float32 or found.ndim != 2 or found.shape[1] != dim:
        raise checking.ShapeError(f"The vectors expect float32 [N, {dim}], received {found.dtype} {list(found.shape)}.")
    checking.lengths(found, "vectors")
    return found


def rows(path: Path) -> int:
    """How many vectors a `.npy` holds; none where there is no file. Raises StoreError."""
    try:
        with path.open("rb") as file:
            np.lib.format.read_magic(file)
            return int(np.lib.format.read_array_header_1_0(file)[0][0])
    except FileNotFoundError:
        return 0
    except (OSError, ValueError, IndexError) as error:
        raise StoreError(f"{path} cannot be read as a .npy table of numbers: {error}.") from error


def names(source: Sequence[Id] | str | Path | None, folder: Path, count: int) -> list[Id]:
    """Ids [N]: given, or from a file, or from `ids.json`, `ids.npy`, `ids.txt` of a folder, or the numbers 0 … N − 1.

    A file is a JSON list, a `.npy` of integers or texts, or a text with one id a line. Raises DataError, StoreError.
    """
    if source is None:
        source = next((path for suffix in ("json", "npy", "txt") if (path := folder / f"ids.{suffix}").exists()), None)
    if source is None:
        return list(range(count))
    values = _ids_of_file(Path(source)) if isinstance(source, str | Path) else source
    found = checking.ids(values)
    if len(found) != count:
        raise DataError(f"There are {len(found)} ids for {count} vectors; give each vector its id, in the same order.")
    return found


def write(path: Path, rows: int, dim: int, parts: Iterable[Floats]) -> dict[str, Any]:
    """A `.npy` of float32 [rows, dim]; returns its print. Raises OSError; then nothing stands there."""

    def fill(file: Any) -> None:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (rows, dim)})
        for part in parts:
            file.write(np.ascontiguousarray(part, "<f4").data)

    return _placed(path, fill)


def write_names(path: Path, ids: Sequence[Id]) -> dict[str, Any]:
    """Ids as a JSON list; returns its print. Raises OSError; then nothing stands there."""
    return _placed(path, lambda file: file.write(json.dumps(list(ids)).encode()))


def read_names(path: Path) -> list[Id]:
    """What `write_names` wrote. Raises StoreError."""
    try:
        found = json.loads(path.read_bytes())
        return checking.ids(found)
    except (OSError, ValueError, TypeError, DataError) as error:
        raise StoreError(f"{path} holds no ids: {error} Restore it from a backup.") from error


def bases(folder: Path) -> Iterator[Path]:
    """Files of bases that Instar has written: not what else may be called so in a folder of the user's."""
    return (path for path in folder.glob("base-*") if _BASE.fullmatch(path.name))


def new(kind: str, generation: Generation, base: dict[str, Any]) -> manifest.Manifest:
    """The stamp of an index that gets one now."""
    return manifest.Manifest(kind, os.urandom(16).hex(), [generation], base)


def placed_by(path: Path, save: Callable[[Path], None]) -> dict[str, Any]:
    """A file that `save` writes to a path of its own, put in place at once and durably; returns its print.

    Raises OSError, and what `save` raises; then nothing stands there.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".writing.")
    os.close(descriptor)
    try:
        save(Path(name))
        with Path(name).open("rb") as file:
            os.fsync(file.fileno())
        os.chmod(name, 0o644)  # noqa: PTH101 - mkstemp makes private files; readers may be other users
        os.replace(name, path)  # noqa: PTH105
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    journal.sync(path.parent)
    return manifest.print_of(path)


def _placed(path: Path, fill: Callable[[Any], object]) -> dict[str, Any]:
    def save(temporary: Path) -> None:
        with temporary.open("wb") as file:
            fill(file)

    return placed_by(path, save)


def _ids_of_file(path: Path) -> Any:
    try:
        if path.suffix == ".npy":
            return np.load(path)
        text = path.read_text("utf-8")
        if path.suffix == ".json":
            return json.loads(text)
        return text.removesuffix("\n").split("\n") if text else []  # not splitlines: U+2028 and its like may stand in an id
    except (OSError, ValueError, EOFError) as error:
        raise StoreError(
            f"{path} holds no ids that can be read ({error}): a JSON list, a .npy, or a text with one a line."
        ) from error
