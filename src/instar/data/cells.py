"""The cells of a table, whoever made it: columns as arrays, times, numbers.

Tables of pandas, polars and pyarrow are known by what they offer, so that none of them has to be installed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instar.data.panel import Values
from instar.errors import DataError

_MISSING = ("", "nan", "na", "n/a", "null", "none", "?")
_DATE = re.compile(r"(\d{4})[-/](\d{1,2})[-/](\d{1,2})(?:[ T](\d{1,2}):(\d{2})(?::(\d{2}))?)?")

Columns = dict[str, Any]


def columns(frame: Any) -> Columns:
    """The columns of a mapping or of a table of pandas, polars or pyarrow. Raises DataError for anything else."""
    if isinstance(frame, Mapping):
        found = {str(name): values for name, values in frame.items()}
    elif hasattr(frame, "column_names") and hasattr(frame, "to_pydict"):
        found = {name: frame[name].to_numpy() for name in frame.column_names}
    elif hasattr(frame, "columns"):
        found = {str(name): frame[name] for name in frame.columns}
    else:
        raise DataError(
            f"A table is expected (pandas, polars, pyarrow, a mapping of columns), or an array; received {type(frame).__name__}."
        )
    arrays = {name: values if isinstance(values, np.ndarray) else _array(values) for name, values in found.items()}
    if len(lengths := {len(values) for values in arrays.values()}) > 1:
        raise DataError(f"The columns have different lengths: {', '.join(map(str, sorted(lengths)))}.")
    return arrays


def maker(frame: Any) -> Callable[[Columns], Any]:
    """What makes a table of the same kind out of columns."""
    if isinstance(frame, Mapping):
        return dict
    return type(frame).from_pydict if hasattr(frame, "to_pydict") else type(frame)


def times(column: NDArray[Any], name: str) -> tuple[NDArray[Any], bool]:
    """Numbers, or datetime64[us] (in UTC and True where they have a time zone). Raises DataError."""
    if column.dtype.kind == "M":
        found = column.astype("datetime64[us]")
        if np.isnat(found).any():
            raise DataError(f"{name} is missing in row {int(np.isnat(found).argmax())}.")
        return found, False
    if column.dtype.kind in "iuf":
        if not np.isfinite(column.astype(np.float64)).all():
            raise DataError(f"{name} is missing or infinite in row {int((~np.isfinite(column)).argmax())}.")
        return column, False
    moments = [_moment(value, name, row) for row, value in enumerate(column)]
    zones = {zone for _, zone in moments}
    if len({type(when) for when, _ in moments}) > 1 or len(zones) > 1:
        raise DataError(f"{name} mixes numbers with dates, or dates with and without a time zone; make them one kind.")
    stamps = [when for when, _ in moments]
    return (np.array(stamps), False) if isinstance(stamps[0], float) else (np.array(stamps, dtype="datetime64[us]"), zones.pop())


def numbers(column: NDArray[Any], name: str) -> Values:
    """Numbers, NaN where a cell is empty. Raises DataError with the row of what is none."""
    if column.dtype.kind in "fiub":
        return column.astype(np.float64)
    found = np.empty(len(column))
    for row, value in enumerate(column):
        try:
            empty = value is None or (isinstance(value, str) and value.strip().lower() in _MISSING)
            found[row] = math.nan if empty else float(value)
        except (TypeError, ValueError) as error:
            raise DataError(f"{name} is {str(value)[:60]!r} in row {row}; a number is expected, or nothing.") from error
    return found


def _moment(value: Any, name: str, row: int) -> tuple[float | datetime, bool]:
    """A number or a date without zone, in UTC where it had one."""
    if isinstance(value, str):
        text = value.strip()
        if match := _DATE.fullmatch(text):
            parts = [int(part or 0) for part in match.groups()]
            try:
                return datetime(*parts), False  # type: ignore[arg-type]
            except ValueError as error:
                raise DataError(f"{name} is {text[:60]!r} in row {row}: {error}.") from error
        for read in (float, datetime.fromisoformat):
            try:
                value = read(text)
                break
            except ValueError:
                continue
    if isinstance(value, datetime):
        return (value, False) if value.tzinfo is None else (value.astimezone(UTC).replace(tzinfo=None), True)
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day), False
    if isinstance(value, (int, float)) and math.isfinite(value):
        return float(value), False
    raise DataError(
        f"{name} is {str(value)[:60]!r} in row {row}; a number is expected, or a date such as 2026-03-01 or 2026-03-01T09:30:00."
    )


def _array(values: Any) -> NDArray[Any]:
    """An array of what a column holds; dates with a zone and texts stay objects."""
    if hasattr(values, "to_numpy"):
        return np.asarray(values.to_numpy())
    plain = list(values)
    kinds = {type(value) for value in plain}
    return np.array(plain) if kinds <= {int, float, bool} or kinds == {np.datetime64} else np.array(plain, dtype=object)
