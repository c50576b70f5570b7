"""Long tables, a row an element: which group each row belongs to, what is said of a group, and columns of numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instar.errors import DataError

_MISSING = ("nan", "na", "n/a", "null", "none", "?")


def word(value: Any, column: str, path: Path, row: int) -> str:
    """A cell that names something. Raises DataError where it is empty, or no text or number."""
    if value is None or isinstance(value, (list, dict)) or not str(value).strip():
        raise DataError(
            f"{path}, row {row + 1} below the header: {column} is {str(value)[:60]!r}; a text or a number is expected."
        )
    return str(value).strip()


def groups(names: Sequence[str]) -> dict[str, list[int]]:
    """Rows of each name, in the order of the file."""
    places: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        places.setdefault(name, []).append(row)
    return places


def said_of(given: Sequence[Any], column: str, kind: str, places: dict[str, list[int]], path: Path) -> list[str]:
    """What a column says of each group, a `kind`: the same in all its rows. Raises DataError."""
    found = []
    for name, members in places.items():
        said = {word(given[row], column, path, row) for row in members}
        if len(said) > 1:
            raise DataError(f"{path}: {column} of the {kind} {name} is {' and '.join(sorted(said)[:3])}; it must be one.")
        found.append(said.pop())
    return found


def numbers(given: Sequence[Any], column: str, path: Path, where: Callable[[int], str], others: str) -> NDArray[np.float64]:
    """A column of numbers, NaN where one is missing. where: says which row; others: the columns that need hold none.

    Raises DataError.
    """
    found = np.empty(len(given))
    for row, value in enumerate(given):
        try:
            missing = value is None or (isinstance(value, str) and value.strip().lower() in ("", *_MISSING))
            found[row] = math.nan if missing else float(value)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"{path}: {column} is {str(value)[:60]!r} {where(row)}; it must hold numbers (every column beside {others} does)."
            ) from error
        if math.isinf(found[row]):
            raise DataError(f"{path}: {column} is infinite {where(row)}.")
    return found
