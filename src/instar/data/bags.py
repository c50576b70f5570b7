"""Bags of instances with one label each: public sets by name, and the user's own table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from instar.data import datasets, long_table
from instar.data.cells import named
from instar.errors import DataError, UnknownNameError
from instar.gate import rows

NAMES = ("elephant", "musk1")
NEEDED = ("bag", "label")
_EXPECTED = "bag (which bag), label (its class, the same in all its rows), and one column for each feature"


@dataclass(frozen=True)
class Bags:
    """Instances [N, F] of each bag, NaN where a value is missing, its name, and the place of its class among the names."""

    name: str
    classes: list[str]
    features: list[str]
    ids: list[str]
    instances: list[NDArray[np.float64]]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.instances)


def bags(data: str) -> Bags:
    """A set by its name, or a table of your own (see `table`). Raises DataError, UnknownNameError, MissingExtraError."""
    if data in NAMES:
        return _public(data)
    if not Path(data).suffix and not Path(data).exists():
        raise UnknownNameError.among("set of bags (and there is no such file)", data, NAMES)
    return table(Path(data))


def table(path: Path) -> Bags:
    """Bags of a file (.csv, .tsv, .jsonl, .parquet) with a row for each instance: bag, label and one column for each feature.

    Rows come in any order. An empty cell, NaN, NA or null is a missing value. Row numbers in a column without a name, as pandas
    writes them, are no feature. Raises DataError that says what is wrong, and where.
    """
    columns = named(rows.columns(path), path)
    if not columns or not next(iter(columns.values())):
        raise DataError(f"{path} holds no row. Expected are the columns {_EXPECTED}.")
    features = [name for name in columns if name not in NEEDED]
    if lacking := [name for name in NEEDED if name not in columns] or ([] if features else ["a feature"]):
        raise DataError(f"{path} lacks {', '.join(lacking)}; it has the columns {', '.join(columns)}. Expected are {_EXPECTED}.")
    ids = [long_table.word(value, "bag", path, row) for row, value in enumerate(columns["bag"])]
    places = long_table.groups(ids)

    def where(row: int) -> str:
        return f"in row {row + 1} below the header (bag {ids[row]})"

    values = np.stack([long_table.numbers(columns[name], name, path, where, "bag and label") for name in features], axis=1)
    said = long_table.said_of(columns["label"], "label", "bag", places, path)
    return _of(path.name, features, list(places), [values[members] for members in places.values()], said)


def _public(name: str) -> Bags:
    """Files without a header: label, bag, features."""
    (path,) = datasets.locate(name)
    found = np.loadtxt(path, delimiter=",", ndmin=2)
    ids = [str(int(bag)) for bag in found[:, 1]]
    places = long_table.groups(ids)
    said = [str(int(found[members[0], 0])) for members in places.values()]
    features = [str(column) for column in range(found.shape[1] - 2)]
    return _of(name, features, list(places), [found[members, 2:] for members in places.values()], said)


def _of(name: str, features: list[str], ids: list[str], instances: list[NDArray[np.float64]], said: list[str]) -> Bags:
    classes = sorted(set(said))
    if len(classes) < 2:
        raise DataError(f"{name}: all bags are of class {classes[0]}; there is nothing to tell apart.")
    return Bags(name, classes, features, ids, instances, np.array([classes.index(label) for label in said]))
