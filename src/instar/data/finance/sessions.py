"""Sessions of an exchange, and to which of them an article belongs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from instar import extras
from instar.data.finance import times
from instar.errors import DataError, UnknownNameError

RULES = ("strict", "open", "fnspid_compat")
_EPOCH = date(1970, 1, 1)
_MARGIN = timedelta(days=30)
"""Beyond the last day asked for, so that the session after it is known: no exchange closes for so long in normal times."""

Times = NDArray[np.int64]
"""Microseconds since 1970, UTC."""
Days = NDArray[np.int64]
"""Days since 1970."""


@dataclass(frozen=True)
class Sessions:
    """The sessions [N] of an exchange in a span of days, half days with their own close."""

    name: str
    days: Days
    opens: Times
    closes: Times

    @property
    def sha256(self) -> str:
        """What decides an alignment: equal sessions, equal hash."""
        parts = (self.name.encode(), self.days.tobytes(), self.opens.tobytes(), self.closes.tobytes())
        return hashlib.sha256(b"\0".join(parts)).hexdigest()

    def between(self, first: int, last: int) -> Sessions:
        """Those from day `first` to day `last`, both in."""
        keep = (self.days >= first) & (self.days <= last)
        return Sessions(self.name, self.days[keep], self.opens[keep], self.closes[keep])

    def covers(self, moments: Times) -> NDArray[np.bool_]:
        """[N]: whether both the sessions before and after each instant are among these, so that its alignment is certain."""
        if not len(self.days):
            return np.zeros(len(moments), np.bool_)
        return (moments >= self.opens[0]) & (moments < self.opens[-1])


def sessions(name: str, first: date, last: date) -> Sessions:
    """Sessions of a calendar of `exchange-calendars` ("XNYS"), from `first` to a month after `last`, in whole years.

    Those alone that the calendar knows: Tokyo's begins in 1997, Shanghai's ends with the year of the package. Raises
    UnknownNameError, DataError (years that are in no calendar), MissingExtraError.
    """
    if last < first:
        raise DataError(f"Sessions from {first} to {last} are asked for: the last day lies before the first.")
    return _sessions(name, first.year, (last + _MARGIN).year)


@lru_cache(maxsize=16)
def _sessions(name: str, first: int, last: int) -> Sessions:
    calendars = extras.require("exchange_calendars", "finance")
    known = calendars.get_calendar_names()
    if name not in known:
        raise UnknownNameError.among("exchange calendar", name, known)
    try:
        reach = calendars.get_calendar(name, start="2023-01-01", end="2023-12-31")  # a short one, to ask for its bounds
        low, high = reach.bound_min(), reach.bound_max()
        start, end = date(first, 1, 1), date(last, 12, 31)
        start, end = start if low is None else max(start, low.date()), end if high is None else min(end, high.date())
        if end < start:
            return Sessions(name, *np.empty((3, 0), np.int64))
        found = calendars.get_calendar(name, start=start.isoformat(), end=end.isoformat())
    except ValueError as error:
        raise DataError(f"The calendar {name} does not reach from {first} to {last}: {error}") from error
    days = found.sessions.values.astype("datetime64[D]").astype(np.int64)
    opens, closes = (
        part.dt.tz_convert(None).to_numpy().astype("datetime64[us]").astype(np.int64) for part in (found.opens, found.closes)
    )
    return Sessions(name, days, opens, closes)


def align(published: Times, known: Times, rule: str, calendar: Sessions) -> Days:
    """The day of the session of each article [N].

        strict:         min { s : close(s) > known }    its features may be used from close(s) on
        open:           min { s : open(s) > known }     its features may be used from open(s) on
        fnspid_compat:  the calendar day of `times.shifted(published)`, a session or not

    Half-open on purpose: what comes out at the second of the close belongs to the next session. An article of which only the
    day is known counts as known at the end of that day, and so belongs to a later session. Raises DataError where the calendar
    does not cover an article, UnknownNameError.
    """
    if rule == "fnspid_compat":
        return np.array([day_number(times.shifted(moment(value)).date()) for value in published.tolist()], np.int64)
    if rule not in RULES:
        raise UnknownNameError.among("alignment rule", rule, RULES)
    if not calendar.covers(known).all():
        raise DataError(f"The sessions of {calendar.name} that were loaded do not cover all articles.")
    edges = calendar.closes if rule == "strict" else calendar.opens
    return calendar.days[np.searchsorted(edges, known, side="right")]


def look_ahead(published: Times, known: Times, calendar: Sessions) -> NDArray[np.bool_]:
    """[N]: whether fnspid_compat dates the article before the first session that closes after its publication.

    Its features then reach prices that were fixed before it was out.
    """
    return align(published, known, "fnspid_compat", calendar) < align(published, known, "strict", calendar)


def micros(value: datetime) -> int:
    """Microseconds since 1970."""
    return (value - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def moment(value: int) -> datetime:
    """The instant of so many microseconds."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=value)


def day_number(day: date) -> int:
    """Days since 1970."""
    return (day - _EPOCH).days


def day_of(number: int) -> date:
    """The day of that number."""
    return _EPOCH + timedelta(days=number)


def span(numbers: Sequence[int]) -> tuple[date, date]:
    """The first and the last of some days."""
    return day_of(min(numbers)), day_of(max(numbers))
