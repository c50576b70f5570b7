"""Times at equal distances: numbers, seconds, working days or months. Found from the times themselves."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from typing import Any, Literal
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from instar.errors import DataError

Kind = Literal["number", "microseconds", "weekdays", "months"]
_DAY = 86_400_000_000  # microseconds
_SEASONS = {60_000_000: 60, 300_000_000: 288, 900_000_000: 96, 1_800_000_000: 48, 3_600_000_000: 24, _DAY: 7, 7 * _DAY: 52}
_MONTHS = {1: 12, 3: 4}


@dataclass(frozen=True)
class Grid:
    """Time number k is start + k · step, in the unit of its kind."""

    kind: Kind
    start: float
    """A number; microseconds since 1970; working days since 1970; months since 1970."""
    step: float
    day: int = 1
    """Of months: the day that stamps carry; 31 is the last day of each."""
    aware: bool = False
    """Whether times came with a time zone; they are kept and given back in UTC."""
    zone: str = ""
    """Where days and months are those of a zone: its name, or its offset. They are kept without it, and given back in it."""

    def later(self, rows: int) -> Grid:
        """The same grid from row `rows` on."""
        return dataclasses.replace(self, start=self.start + rows * self.step)

    @property
    def season(self) -> int:
        """Rows of the natural season: a day of hours, a week of days, a year of months; 1 where none is known."""
        if self.kind == "months":
            return _MONTHS.get(int(self.step), 1)
        if self.kind == "weekdays":
            return 5
        return _SEASONS.get(int(self.step), 1) if self.kind == "microseconds" else 1

    @property
    def mark_count(self) -> int:
        """How many marks describe a time."""
        return 0 if self.kind == "number" else 4

    def stamps(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """The times of rows: numbers, datetime64[us], or datetimes in UTC where a time zone was given."""
        place = self.start + rows * self.step
        if self.kind == "number":
            whole = float(self.start).is_integer() and float(self.step).is_integer()
            return place.astype(np.int64) if whole else place
        found = self._dates(place)
        if not self.aware:
            return found
        if self.zone:
            return np.array([when.replace(tzinfo=_zone(self.zone)) for when in found.tolist()], dtype=object)
        return np.array([datetime.fromtimestamp(int(t) / 1e6, UTC) for t in found.astype(np.int64)], dtype=object)

    def find(self, times: NDArray[Any], first: int, end: int) -> list[int | None]:
        """The row of each time (numbers, or datetime64[us] in UTC) among rows `first` … `end` − 1; None for no row of those."""
        if self.kind == "number":
            rows = (times.astype(np.float64) - self.start) / self.step
            whole = np.rint(rows)
            near = (np.abs(rows - whole) <= _allowed(times, self.step)) & (whole >= first) & (whole < end)
            return [int(row) if good else None for row, good in zip(whole.tolist(), near.tolist(), strict=True)]
        ahead = np.arange(first, end)
        row_of = dict(zip(self._dates(self.start + ahead * self.step).tolist(), ahead.tolist(), strict=True))
        return [row_of.get(when) for when in _local(times, self.zone).tolist()]

    def _dates(self, place: NDArray[Any]) -> NDArray[Any]:
        whole = np.asarray(place, dtype=np.int64)
        if self.kind == "microseconds":
            return whole.astype("datetime64[us]")
        if self.kind == "weekdays":
            return np.busday_offset(np.datetime64("1970-01-01"), whole, roll="forward").astype("datetime64[us]")
        months = whole.astype("datetime64[M]")
        last = ((months + 1).astype("datetime64[D]") - months.astype("datetime64[D]")).astype(np.int64)
        return (months.astype("datetime64[D]") + np.minimum(self.day, last) - 1).astype("datetime64[us]")

    def marks(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """[rows, 4]: hour, weekday, day of the month and of the year, each from −½ to ½; [rows, 0] where times are numbers."""
        if self.kind == "number":
            return np.zeros((len(rows), 0), dtype=np.float32)
        stamp = self._dates(self.start + rows * self.step)
        day = stamp.astype("datetime64[D]")
        hour = (stamp - day).astype(np.int64) // 3_600_000_000
        weekday = (day.astype(np.int64) + 3) % 7
        of_month = (day - day.astype("datetime64[M]")).astype(np.int64)
        of_year = (day - day.astype("datetime64[Y]")).astype(np.int64)
        parts = [hour / 23 - 0.5, weekday / 6 - 0.5, of_month / 30 - 0.5, of_year / 365 - 0.5]
        return np.stack(parts, axis=1).astype(np.float32)


def counted() -> Grid:
    """0, 1, 2, …"""
    return Grid("number", 0, 1)


def place(times: NDArray[Any], aware: bool = False, zone: str = "") -> tuple[Grid, NDArray[np.int64]]:
    """The grid of times (numbers, or datetime64[us] in UTC; with a zone, where they are midnights) and the row of each.

    The step is the smallest distance, of which all others must be multiples. Working days are found where no time falls on a
    weekend, months where days of the month agree. Raises DataError for times at no equal distances.
    """
    times = _local(times, zone)
    different = np.unique(times)
    if len(different) < 2:
        raise DataError(f"There is one time only ({different[0]}); two at least are needed to know how far apart times are.")
    if different.dtype.kind != "M":
        return _stepped("number", different, times, {})
    further: dict[str, Any] = {"aware": aware, "zone": zone}
    days = different.astype("datetime64[D]")
    midnight = bool((different == days).all())
    if midnight and (found := _monthly(days, times, further)):
        return found
    if midnight and np.is_busday(days).all() and len(days) > 5 and _commonest(days.astype(np.int64)) == 1:
        counts = np.busday_count(np.datetime64("1970-01-01"), days)
        rows = np.busday_count(np.datetime64("1970-01-01"), times.astype("datetime64[D]")) - counts[0]
        return Grid("weekdays", int(counts[0]), 1, **further), rows.astype(np.int64)
    return _stepped("microseconds", different.astype(np.int64), times.astype(np.int64), further)


def _zone(name: str) -> tzinfo:
    if name[0] in "+-":
        return datetime.fromisoformat(f"2000-01-01T00:00:00{name}").tzinfo or UTC
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, KeyError) as error:  # ZoneInfoNotFoundError is a KeyError
        raise DataError(f"There is no time zone '{name}' on this machine. Give times in UTC, or without a zone.") from error


def _local(times: NDArray[Any], zone: str) -> NDArray[Any]:
    """Times of UTC as clocks of the zone show them."""
    if not zone:
        return times
    where = _zone(zone)
    shown = {when: when.replace(tzinfo=UTC).astimezone(where).replace(tzinfo=None) for when in np.unique(times).tolist()}
    return np.array([shown[when] for when in times.tolist()], dtype="datetime64[us]")


def _monthly(days: NDArray[Any], times: NDArray[Any], further: dict[str, Any]) -> tuple[Grid, NDArray[np.int64]] | None:
    """Days of the month that agree (or are all the last), at least a month apart."""
    months = days.astype("datetime64[M]")
    of_month = (days - months.astype("datetime64[D]")).astype(np.int64) + 1
    last = bool(((days + 1).astype("datetime64[M]") > months).all())
    number = months.astype(np.int64)
    if not (last or len(set(of_month.tolist())) == 1) or len(np.unique(number)) < len(number):
        return None
    step = np.diff(number).min()
    if np.any((number - number[0]) % step):
        return None
    rows = (times.astype("datetime64[M]").astype(np.int64) - number[0]) // int(step)
    return Grid("months", int(number[0]), int(step), day=31 if last else int(of_month[0]), **further), rows


def _stepped(kind: Kind, different: NDArray[Any], times: NDArray[Any], further: dict[str, Any]) -> tuple[Grid, NDArray[np.int64]]:
    apart = np.diff(different)
    step = apart.min()
    if kind == "number":  # a distance of two large numbers is rounded; their whole span is not
        step = (different[-1] - different[0]) / np.rint(apart / step).sum()
    rows = (times - different[0]) / step
    whole = np.rint(rows)
    if np.abs(rows - whole).max() > _allowed(times, step):
        step = _commonest(different)
        rows = (times - different[0]) / step
        whole = np.rint(rows)
        odd = int(np.abs(rows - whole).argmax())
        shown = np.asarray(times[odd]).astype("datetime64[us]") if kind == "microseconds" else times[odd]
        unit = f"{step / 1e6:g} s" if kind == "microseconds" else f"{step:g}"
        raise DataError(
            f"Times must lie at equal distances; most are {unit} apart, and {shown} falls between. Resample the table first."
        )
    return Grid(kind, different[0].item(), step.item(), **further), whole.astype(np.int64)


def _allowed(times: NDArray[Any], step: float) -> float:
    """Of a row: a millionth, or what rounding makes of large numbers."""
    return max(1e-6, 8 * np.finfo(np.float64).eps * float(np.abs(times.astype(np.float64)).max(initial=0)) / step)


def _commonest(ordered: NDArray[Any]) -> Any:
    distances, counts = np.unique(np.diff(ordered), return_counts=True)
    return distances[counts.argmax()]
