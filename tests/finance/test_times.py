"""Dates of articles: zones, clock changes, days without a time, relative ones; and FNSPID's clock, which runs the wrong way."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instar.data.finance import times

NOW = datetime(2024, 7, 20, 18, 0, tzinfo=UTC)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("said", "expected", "zone"),
    [
        ("January 25, 2024 — 08:52 am EST", "2024-01-25T13:52", "abbreviation"),
        ("July 15, 2024 — 03:59 pm EDT", "2024-07-15T19:59", "abbreviation"),
        ("July 15, 2024 - 04:01 PM EDT", "2024-07-15T20:01", "abbreviation"),
        ("July 15, 2024 — 04:01 pm EST", "2024-07-15T20:01", "wall clock"),  # nobody uses EST in July: the clock is meant
        ("Thu, 25 Jan 2024 08:52:00 EST", "2024-01-25T13:52", "abbreviation"),
        ("Thu, 25 Jan 2024 13:52:00 GMT", "2024-01-25T13:52", "offset"),
        ("Thu, 25 Jan 2024 13:52:00 -0000", "2024-01-25T13:52", "assumed"),
        ("25 Jan 2024 15:52:00 +0200", "2024-01-25T13:52", "offset"),
        ("Thu, 25 Jan 2024 13:52:00 +0000 (UTC)", "2024-01-25T13:52", "offset"),
        ("Thu, 25 Jan 2024 05:52 PST", "2024-01-25T13:52", "offset"),
        ("25 Jan 2024 1:52 PM GMT", "2024-01-25T13:52", "offset"),
        ("Thu, 25 Jan 2024 08:52:00 ET", "2024-01-25T13:52", "abbreviation"),
        ("2024-01-25T13:52:00Z", "2024-01-25T13:52", "offset"),
        ("2024-01-25 13:52:00 UTC", "2024-01-25T13:52", "offset"),
        ("2024-01-25T08:52:00-05:00", "2024-01-25T13:52", "offset"),
        ("2024-01-25 13:52:00", "2024-01-25T13:52", "assumed"),
        ("01/25/2024 1:52 PM UTC", "2024-01-25T13:52", "offset"),
        ("1706190720", "2024-01-25T13:52", "offset"),
        ("1706190720000", "2024-01-25T13:52", "offset"),
    ],
)
def test_a_time_of_day_is_read_with_its_zone(said: str, expected: str, zone: str) -> None:
    found = times.parse(said, NOW)
    assert (found.published, found.known) == (utc(expected), utc(expected))
    assert (found.zone, found.precision) == (zone, "time")


def test_a_time_without_a_zone_is_in_the_zone_of_its_source() -> None:
    for said in ("2024-01-25 08:52", "Thu, 25 Jan 2024 08:52:00", "Jan 25, 2024 08:52"):
        assert times.parse(said, NOW, zone="America/New_York").published == utc("2024-01-25T13:52")


def test_the_hour_that_comes_twice_is_told_apart_by_its_abbreviation() -> None:
    first = times.parse("November 5, 2023 — 01:30 am EDT", NOW).published
    second = times.parse("November 5, 2023 — 01:30 am EST", NOW).published
    assert second - first == timedelta(hours=1)
    assert first == utc("2023-11-05T05:30")


@pytest.mark.parametrize(
    "said", ["JAN 25, 2024", "2024-01-25", "January 25, 2024", "01/25/2024", "2024-01-25 00:00:00 UTC", "20240125"]
)
def test_a_day_without_a_time_is_known_when_it_is_over(said: str) -> None:
    found = times.parse(said, NOW)
    assert found.precision == "day"
    assert found.known == utc("2024-01-26T05:00")  # midnight in New York
    assert found.published == utc("2024-01-25T05:00")


def test_a_day_of_23_hours_ends_after_23_hours() -> None:
    found = times.parse("MAR 10, 2024", NOW)
    assert found.known - found.published == timedelta(hours=23)


def test_relative_dates_count_from_the_retrieval() -> None:
    found = times.parse("14 HOURS AGO", NOW)
    assert (found.published, found.precision, found.zone) == (NOW - timedelta(hours=14), "approx", "relative")
    assert times.parse("35 minutes ago", NOW).published == NOW - timedelta(minutes=35)
    day = times.parse("2 DAYS AGO", NOW)
    assert (day.precision, day.published) == ("day", utc("2024-07-18T04:00"))
    assert times.parse("Yesterday", NOW).published == utc("2024-07-19T04:00")


@pytest.mark.parametrize(
    "said",
    [
        *(
            "",
            "soon",
            "2024-13-45",
            "25:99",
            "January 25, 2024 — 08:52 am XYZ",
            "25 Jan 2024 08:52 HST",
            "1899-01-01",
            "9" * 13,
            "2031-01-01T00:10:00Z",
        ),
        *("\0", "9999-12-31", "9999-12-31T23:30:00-05:00", "0001-01-01T00:00:00+01:00", "January 1, 0001 12:30 am +0200"),
    ],
)
@pytest.mark.parametrize("clock", ["true", "fnspid"])
def test_what_is_no_date_is_refused_with_what_was_received(said: str, clock: str) -> None:
    with pytest.raises(ValueError, match=r"date|1900|future"):
        times.parse(said, NOW, clock=clock)


def test_fnspids_clock_goes_five_hours_back_where_utc_lies_five_ahead() -> None:
    true = times.parse("January 17, 2024 — 08:52 am EST", NOW).published
    assert true == utc("2024-01-17T13:52")
    assert times.shifted(true) == utc("2024-01-17T03:52")
    assert times.parse("2024-01-17 03:52:00+00:00", NOW, clock="fnspid").published == true
    assert times.parse("2024-07-17 04:00:00+00:00", NOW, clock="fnspid").published == utc("2024-07-17T12:00")
    assert times.parse("2024-07-17 00:00:00+00:00", NOW, clock="fnspid").precision == "time"  # midnight of that clock is a time


@settings(max_examples=300, deadline=None)
@given(st.datetimes(datetime(2007, 4, 1), datetime(2024, 1, 1)))
def test_the_wrong_clock_can_be_turned_back_but_in_the_hours_of_a_change(naive: datetime) -> None:
    true = naive.replace(tzinfo=UTC, microsecond=0)
    local = true.astimezone(times.NEW_YORK)
    if local.month in (3, 11) and local.weekday() in (5, 6, 0):
        return  # the days around a clock change
    assert times.unshifted(times.shifted(true)) == true
