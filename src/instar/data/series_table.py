"""The user's own labelled series: a long table with one row for each series and time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from instar.data import long_table
from instar.data.cells import named
from instar.data.series import Series, SeriesSet, held_out
from instar.errors import DataError
from instar.gate import rows

NEEDED = ("unique_id", "ds", "label")
SPLIT = "split"
_TEST = 0.2
_EXPECTED = "unique_id (which series), ds (when: a number or a date), label (its class), and one column for each channel"


def table(path: Path) -> SeriesSet:
    """Series of a file (.csv, .tsv, .jsonl, .parquet) with the columns unique_id, ds, label and one for each channel.

    Rows come in any order; those of a series are sorted by `ds`, whose distances are not looked at. Lengths may differ. An empty
    cell, NaN, NA or null is a missing value. A column `split` says train or test, the same for all rows of a series; without it
    a fifth of each class is the test set, by the hash of unique_id. Row numbers in a column without a name, as pandas writes
    them, are no channel. Raises DataError that says what is wrong, and where.
    """
    columns = named(rows.columns(path), path)
    if not columns or not next(iter(columns.values())):
        raise DataError(f"{path} holds no row. Expected are the columns {_EXPECTED}.")
    channels = [name for name in columns if name not in (*NEEDED, SPLIT)]
    if lacking := [name for name in NEEDED if name not in columns] or ([] if channels else ["a channel"]):
        raise DataError(f"{path} lacks {', '.join(lacking)}; it has the columns {', '.join(columns)}. Expected are {_EXPECTED}.")
    ids = [long_table.word(value, "unique_id", path, row) for row, value in enumerate(columns["unique_id"])]
    places = long_table.groups(ids)
    times = _times(columns["ds"], path)
    for name, members in places.items():
        members.sort(key=times.__getitem__)
        for a, b in itertools.pairwise(members):
            if times[a] == times[b]:
                raise DataError(f"{path}: the series {name} has two rows at ds {columns['ds'][b]}.")

    def where(row: int) -> str:
        return f"in the series {ids[row]} at ds {columns['ds'][row]}"

    others = "unique_id, ds, label and split"
    values = np.stack([long_table.numbers(columns[name], name, path, where, others) for name in channels], axis=1)
    frames = [values[members] for members in places.values()]
    for name, frame in zip(places, frames, strict=True):
        if np.isnan(frame).all():
            raise DataError(f"{path}: the series {name} has no value at all. Remove it.")
    said = long_table.said_of(columns["label"], "label", "series", places, path)
    classes = sorted(set(said))
    if len(classes) < 2:
        raise DataError(f"{path}: all series are of class {classes[0]}; there is nothing to tell apart.")
    found = Series(frames, np.array([classes.index(label) for label in said]))
    if SPLIT in columns:
        kept, test = _given(long_table.said_of(columns[SPLIT], SPLIT, "series", places, path), path)
    else:
        _enough(said, path)
        kept, test = held_out(found.labels, list(places), _TEST)
    train = found.at(kept)
    if unseen := sorted(set(found.labels[test].tolist()) - set(train.labels.tolist())):
        raise DataError(f"{path}: no series of the class {classes[unseen[0]]} is in the training set, but in the test set.")
    return SeriesSet(path.name, classes, channels, train, found.at(test))


def _times(given: Sequence[Any], path: Path) -> list[Any]:
    """What rows are sorted by: all numbers, or else all dates."""
    texts = [long_table.word(value, "ds", path, row) for row, value in enumerate(given)]
    for read in (_finite, datetime.fromisoformat):
        try:
            found: list[Any] = [read(text) for text in texts]
            max(found)  # dates with and without a time zone cannot be compared
        except (ValueError, TypeError):
            continue
        return found
    raise DataError(
        f"{path}: ds must be numbers in all rows, or dates such as 2026-03-01 or 2026-03-01T09:30:00 in all rows, all with "
        f"a time zone or all without; received among others {texts[0][:60]!r} and {texts[-1][:60]!r}."
    )


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def _given(said: Sequence[str], path: Path) -> tuple[list[int], list[int]]:
    parts: dict[str, list[int]] = {"train": [], "test": []}
    for place, part in enumerate(said):
        if part.lower() not in parts:
            raise DataError(f"{path}: split expects train or test; received {part[:60]!r}.")
        parts[part.lower()].append(place)
    if not parts["train"] or not parts["test"]:
        raise DataError(f"{path}: split names {len(parts['train'])} series train and {len(parts['test'])} test; both are needed.")
    return parts["train"], parts["test"]


def _enough(said: Sequence[str], path: Path) -> None:
    for label in sorted(set(said)):
        if (count := said.count(label)) < 3:
            raise DataError(
                f"{path}: the class {label} has {count} series; three are the least, for training, validation and test. Add "
                "series, remove the class, or say what is train and what is test in a column split."
            )
