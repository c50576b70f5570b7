"""Sessions and alignment: half days, weekends, holidays, and what is out at the second of the close."""

from __future__ import annotations

from datetime import date, datetime

import numpy as np
import pytest

from instar.data.finance.sessions import align, day_of, look_ahead, micros, sessions
from instar.data.finance.times import NEW_YORK
from instar.errors import DataError, UnknownNameError

pytest.importorskip("exchange_calendars")
CALENDAR = sessions("XNYS", date(2023, 1, 1), date(2024, 12, 31))


def aligned(text: str, rule: str = "strict") -> str:
    local = datetime.fromisoformat(text).replace(tzinfo=NEW_YORK)
    at = np.array([micros(local)])
    return day_of(int(align(at, at, rule, CALENDAR)[0])).isoformat()


@pytest.mark.parametrize(
    ("local", "strict", "opened"),
    [
        ("2024-07-15T09:29", "2024-07-15", "2024-07-15"),
        ("2024-07-15T09:30", "2024-07-15", "2024-07-16"),
        ("2024-07-15T15:59", "2024-07-15", "2024-07-16"),
        ("2024-07-15T16:00", "2024-07-16", "2024-07-16"),  # at the close: too late for it
        ("2024-07-15T16:01", "2024-07-16", "2024-07-16"),
        ("2024-12-24T12:59", "2024-12-24", "2024-12-26"),  # half day: it closes at 13:00
        ("2024-12-24T13:01", "2024-12-26", "2024-12-26"),  # and Christmas follows
        ("2024-07-12T17:00", "2024-07-15", "2024-07-15"),  # Friday evening
        ("2024-07-13T10:00", "2024-07-15", "2024-07-15"),
        ("2024-05-27T10:00", "2024-05-28", "2024-05-28"),  # Memorial Day, a Monday
        ("2024-11-29T13:30", "2024-12-02", "2024-12-02"),  # the half day after Thanksgiving
        ("2024-11-01T15:59", "2024-11-01", "2024-11-04"),  # before the clocks change …
        ("2024-11-04T15:59", "2024-11-04", "2024-11-05"),  # … and after
        ("2024-11-04T16:01", "2024-11-05", "2024-11-05"),
    ],
)
def test_the_session_of_an_article(local: str, strict: str, opened: str) -> None:
    assert aligned(local) == strict
    assert aligned(local, "open") == opened


def test_fnspids_rule_is_the_day_of_its_wrong_clock_and_looks_ahead_after_the_close() -> None:
    assert aligned("2024-07-15T16:01", "fnspid_compat") == "2024-07-15"
    assert aligned("2024-07-13T10:00", "fnspid_compat") == "2024-07-13"  # a Saturday: no session
    assert aligned("2024-07-16T03:00", "fnspid_compat") == "2024-07-15"  # the day before
    at = np.array([micros(datetime(2024, 7, 15, hour, 30, tzinfo=NEW_YORK)) for hour in range(24)])
    early = look_ahead(at, at, CALENDAR)
    assert early.tolist() == [
        hour < 4 or hour >= 16 for hour in range(24)
    ]  # after the close, and early the same night too: 00:30 − 8 h


def test_strict_never_gives_a_session_that_had_closed_and_open_none_that_had_begun() -> None:
    at = np.sort(np.random.default_rng(0).integers(CALENDAR.opens[5], CALENDAR.closes[-5], 2000))
    place = {int(day): i for i, day in enumerate(CALENDAR.days)}
    for rule, edges in (("strict", CALENDAR.closes), ("open", CALENDAR.opens)):
        found = np.array([place[int(day)] for day in align(at, at, rule, CALENDAR)])
        assert (edges[found] > at).all()
        assert (edges[found - 1] <= at).all()  # and no earlier one would do
        assert (np.diff(found) >= 0).all()


def test_bad_requests_are_told() -> None:
    at = np.array([micros(datetime(2030, 1, 1, tzinfo=NEW_YORK))])
    with pytest.raises(DataError, match="do not cover"):
        align(at, at, "strict", CALENDAR)
    with pytest.raises(UnknownNameError, match="strict"):
        align(at, at, "strickt", CALENDAR)
    with pytest.raises(UnknownNameError, match="exchange calendar"):
        sessions("XNYSE", date(2023, 1, 1), date(2023, 2, 1))
    with pytest.raises(DataError, match="before the first"):
        sessions("XNYS", date(2023, 1, 1), date(2022, 2, 1))


@pytest.mark.parametrize(("name", "begins"), [("XTKS", 1997), ("XBOM", 1997), ("XSHG", 1990)])
def test_a_calendar_gives_the_years_that_it_knows_and_says_what_they_cover(name: str, begins: int) -> None:
    assert len(sessions(name, date(1970, 1, 1), date(1970, 12, 1)).days) == 0
    found = sessions(name, date(1970, 1, 1), date(1999, 1, 1))
    assert day_of(int(found.days[0])).year == begins
    edges = np.array([found.opens[0] - 1, found.opens[0], found.opens[-1] - 1, found.opens[-1]])
    assert found.covers(edges).tolist() == [False, True, True, False]
    inside = edges[1:3]
    for rule in ("strict", "open"):
        assert align(inside, inside, rule, found)[0] == found.days[0 if rule == "strict" else 1]
        with pytest.raises(DataError, match="do not cover"):
            align(edges[:1], edges[:1], rule, found)


def test_other_exchanges_have_other_days() -> None:
    london = sessions("XLON", date(2024, 1, 1), date(2024, 6, 30))
    assert set(london.days) != set(CALENDAR.between(london.days[0], london.days[-1]).days)
    assert london.sha256 != CALENDAR.sha256
