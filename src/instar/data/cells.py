"""The cells of a table, whoever made it: columns as arrays, times, numbers.

Tables of pandas, polars and pyarrow are known by what they offer, so that none of them has to be installed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from instar.data.panel import Values
from instar.errors import DataError

_MISSING = ("", "nan", "na", "n/a", "null", "none", "?")
_TRUTH = {"true": 1.0, "false": 0.0}
_DATE = re.compile(r"(\d{4})[-/](\d{1,2})[-/](\d{1,2})(?:[ T](\d{1,2}):(\d{2})(?::(\d{2}))?)?")

_OLDEST, _NEWEST = 19000101, 21001231
"""Between these, whole numbers may be days."""

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


def named(given: Columns, path: Path) -> Columns:
    """Without the row numbers that pandas writes first, in a column without a name. Raises DataError for another such column."""
    for name in [name for name in given if not name.strip() or re.fullmatch(r"Unnamed: \d+", name)]:
        if [str(value) for value in given[name]] != [str(row) for row in range(len(given[name]))]:
            raise DataError(f"Column {list(given).index(name) + 1} of {path} has no name. Name it, or take it out.")
        given = {key: values for key, values in given.items() if key != name}
    return given


def maker(frame: Any) -> Callable[[Columns], Any]:
    """What makes a table of the same kind out of columns."""
    if isinstance(frame, Mapping):
        return dict
    return type(frame).from_pydict if hasattr(frame, "to_pydict") else type(frame)


class Times(NamedTuple):
    """A column of times."""

    stamps: NDArray[Any]
    """Numbers, or datetime64[us], in UTC where they had a time zone."""
    aware: bool = False
    """Whether they had one."""
    zone: str = ""
    """Where all are midnights of one that are none of UTC: a name of it, or its offset. Days and months are counted there."""


def times(column: NDArray[Any], name: str) -> Times:
    """Numbers or times; whole numbers that are dates written as YYYYMMDD are dates. Raises DataError."""
    if column.dtype.kind == "M":
        found = column.astype("datetime64[us]")
        if np.isnat(found).any():
            raise DataError(f"{name} is missing in row {int(np.isnat(found).argmax())}.")
        return Times(found)
    if column.dtype.kind in "iuf":
        if not np.isfinite(column.astype(np.float64)).all():
            raise DataError(f"{name} is missing or infinite in row {int((~np.isfinite(column)).argmax())}.")
        return Times(_days(column))
    moments = [_moment(value, name, row) for row, value in enumerate(column)]
    if len({(type(when), getattr(when, "tzinfo", None) is None) for when in moments}) > 1:
        raise DataError(f"{name} mixes numbers with dates, or dates with and without a time zone; make them one kind.")
    if isinstance(moments[0], float):
        return Times(_days(np.array(moments)))
    dates = [when for when in moments if isinstance(when, datetime)]
    if dates[0].tzinfo is None:
        return Times(np.array(dates, dtype="datetime64[us]"))
    utc = [when.astimezone(UTC).replace(tzinfo=None) for when in dates]
    return Times(np.array(utc, dtype="datetime64[us]"), True, _zone(dates, utc, name))


def _days(column: NDArray[Any]) -> NDArray[Any]:
    """20240131 as the day that it is, if all numbers are such days; otherwise the numbers."""
    if not len(column) or (column < _OLDEST).any() or (column > _NEWEST).any() or (column != np.rint(column)).any():
        return column
    try:
        days = {value: datetime.strptime(str(value), "%Y%m%d") for value in np.unique(column).astype(np.int64).tolist()}
    except ValueError:
        return column
    return np.array([days[value] for value in column.astype(np.int64).tolist()], dtype="datetime64[us]")


def _zone(dates: Sequence[datetime], utc: Sequence[datetime], name: str) -> str:
    """See `Times.zone`. Raises DataError where the clock of the zone changes and nothing says what it is called."""
    midnight = time()
    if any(when.time() != midnight for when in dates) or all(when.time() == midnight for when in utc):
        return ""
    names = {getattr(when.tzinfo, "key", None) or getattr(when.tzinfo, "zone", None) for when in dates}
    if len(names) == 1 and (found := names.pop()):
        return str(found)
    if len({when.utcoffset() for when in dates}) == 1:
        return dates[0].isoformat()[-6:]
    raise DataError(
        f"{name} has midnights of a zone whose clock changes, with offsets alone: what comes after them cannot be known. Give "
        "dates without a zone, or datetimes of a zone with a name, such as Europe/Berlin."
    )


def numbers(column: NDArray[Any], name: str) -> Values:
    """Numbers, NaN where a cell is empty, 1 for true and 0 for false. Raises DataError with the row of what is none."""
    if column.dtype.kind in "fiub":
        return column.astype(np.float64)
    found = np.empty(len(column))
    for row, value in enumerate(column):
        try:
            text = value.strip().lower() if isinstance(value, str) else None
            if value is None or text in _MISSING:
                found[row] = math.nan
            else:
                found[row] = _TRUTH[text] if text in _TRUTH else float(value)
        except (TypeError, ValueError) as error:
            raise DataError(f"{name} is {str(value)[:60]!r} in row {row}; a number is expected, or nothing.") from error
    return found


def _moment(value: Any, name: str, row: int) -> float | datetime:
    """A number or a date, as it was given."""
    if isinstance(value, str):
        text = value.strip()
        if match := _DATE.fullmatch(text):
            parts = [int(part or 0) for part in match.groups()]
            try:
                return datetime(*parts)  # type: ignore[arg-type]
            except ValueError as error:
                raise DataError(f"{name} is {text[:60]!r} in row {row}: {error}.") from error
        for read in (float, datetime.fromisoformat):
            try:
                value = read(text)
                break
            except ValueError:
                continue
    if isinstance(value, datetime):
        return value
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day)
    if isinstance(value, (int, float)) and math.isfinite(value):
        return float(value)
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
