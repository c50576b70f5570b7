"""When an article was published: dates as feeds, lists and dumps write them, to UTC, with how exact and on whose word.

Two instants come out. `published` is what the text says; `known` is the moment from which it can be relied on that the article
was out: the same for a time of day, the end of that day in its zone for a date alone. Alignment uses `known`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

NEW_YORK = ZoneInfo("America/New_York")
_ABBREVIATIONS = {"EST": -5, "EDT": -4}
_OFFSETS = {"GMT": 0, "UTC": 0, "UT": 0, "Z": 0, "CST": -6, "CDT": -5, "MST": -7, "MDT": -6, "PST": -8, "PDT": -7}
"""Of RFC 822. Other names are refused: read as UTC they would date an article hours before it was out."""
_AROUND = re.compile(r"^[A-Za-z]{3,9},\s*(?=\d)|\s*\([A-Za-z ]*\)$")
"""A weekday before a date and a comment behind it."""
_OLDEST = datetime(1900, 1, 1, tzinfo=UTC)
_AHEAD = timedelta(days=1)
"""A date further ahead of its retrieval is refused: clocks differ by minutes, zones by hours."""
_DATES = ("%Y-%m-%d", "%Y/%m/%d", "%m/%d/%Y", "%B %d, %Y", "%b %d, %Y", "%b. %d, %Y", "%d %B %Y", "%d %b %Y", "%Y%m%d")
_CLOCKS = ("%H:%M:%S.%f", "%H:%M:%S", "%H:%M", "%I:%M %p", "%I:%M:%S %p")
_RELATIVE = re.compile(r"(\d{1,4})\s*(minute|min|hour|hr|day|week)s?\s+ago", re.IGNORECASE)
_SPLIT = re.compile(
    r"(?P<date>.*?\d{4}|\d{4}[-/]\d{1,2}[-/]\d{1,2})(?:\s*[-—–,]\s*|\s+|T)(?P<clock>\d{1,2}:\d{2}(?::\d{2}(?:\.\d{1,6})?)?\s*(?:[AaPp]\.?[Mm]\.?)?)"
    r"\s*(?P<zone>[A-Za-z]{1,4}|[+-]\d{2}:?\d{2})?"
)


@dataclass(frozen=True)
class Instant:
    """A time of publication."""

    published: datetime
    """UTC."""
    known: datetime
    """UTC; see above."""
    zone: str
    """On whose word: offset, abbreviation, wall clock (an abbreviation of the other season), assumed, relative, fnspid."""
    precision: str
    """time, approx or day."""


def parse(text: str, retrieved: datetime, *, zone: str = "UTC", clock: str = "true") -> Instant:
    """The instant that `text` names. Raises ValueError with what was received.

    Args:
        text: ISO 8601, RFC 822, "January 25, 2024 — 03:33 am EST", "JAN 25, 2024", "14 HOURS AGO", seconds since 1970.
        retrieved: when it was read; what is relative counts from there.
        zone: of times without one, an IANA name.
        clock: true, or fnspid: times that FNSPID moved by the offset in the wrong direction (see `unshifted`).

    EST and EDT are read as the wall clock of New York; where the abbreviation is not that day's, the clock is believed and not
    the abbreviation. Midnight to the second is how dumps write a date alone, and is read as one.
    """
    said = " ".join(text.replace("\u202f", " ").replace("\xa0", " ").split())
    if not said:
        raise ValueError("the date is empty")
    try:
        found = _relative(said, retrieved) or _epoch(said) or _written(said, zone)
        if clock == "fnspid" and found.zone != "relative":
            if found.precision == "day":  # midnight is a time of that clock, as any other
                found = Instant(datetime.combine(found.published.date(), datetime.min.time(), UTC), found.known, "", "time")
            moment = unshifted(found.published)
            found = Instant(moment, moment, "fnspid", "time")
    except OverflowError as error:  # 9999-12-31 ends in a year that there is not, and so does the first day in the east
        raise ValueError(f"'{said[:60]}' is a date beyond the years 1 to 9999 in UTC") from error
    check(found.published, retrieved, said)
    return found


def check(moment: datetime, retrieved: datetime, said: str) -> None:
    """Raises ValueError for what no news and no price can be dated: before 1900, or in the future of its retrieval."""
    if moment < _OLDEST:
        raise ValueError(f"'{said[:60]}' lies before 1900")
    if moment > retrieved + _AHEAD:
        raise ValueError(f"'{said[:60]}' lies in the future of its retrieval, {retrieved:%Y-%m-%d %H:%M} UTC")


def shifted(moment: datetime) -> datetime:
    """What FNSPID makes of a true time: its hours are moved towards the past by New York's offset where UTC lies ahead.

    08:52 EST, truly 13:52 UTC, becomes 03:52 "UTC".
    """
    local = moment.astimezone(NEW_YORK)
    offset = local.utcoffset()
    assert offset is not None
    return (local.replace(tzinfo=None) + offset).replace(tzinfo=UTC)


def unshifted(wrong: datetime) -> datetime:
    """The true time behind one of FNSPID: the inverse of `shifted` wherever that has one (all but the hours of clock changes)."""
    for hours in (5, 4):
        local = (wrong.replace(tzinfo=None) + timedelta(hours=hours)).replace(tzinfo=NEW_YORK)
        for fold in (0, 1):
            true = local.replace(fold=fold).astimezone(UTC)
            if shifted(true) == wrong:
                return true
    return (wrong.replace(tzinfo=None) + timedelta(hours=5)).replace(tzinfo=NEW_YORK).astimezone(UTC)


def _relative(said: str, retrieved: datetime) -> Instant | None:
    if said.lower() == "yesterday":
        return _whole_day(retrieved.astimezone(NEW_YORK).date() - timedelta(days=1), NEW_YORK, "relative")
    match = _RELATIVE.fullmatch(said)
    if match is None:
        return None
    count, unit = int(match[1]), match[2].lower()
    if unit in ("day", "week"):
        days = count * (7 if unit == "week" else 1)
        return _whole_day(retrieved.astimezone(NEW_YORK).date() - timedelta(days=days), NEW_YORK, "relative")
    moment = retrieved - timedelta(minutes=count) * (60 if unit.startswith("h") else 1)
    return Instant(moment, moment, "relative", "approx")


def _epoch(said: str) -> Instant | None:
    if not re.fullmatch(r"\d{9,13}", said):
        return None
    seconds = int(said) / (1000 if len(said) > 11 else 1)
    moment = datetime.fromtimestamp(seconds, UTC)
    return Instant(moment, moment, "offset", "time")


def _written(said: str, zone: str) -> Instant:
    bare = _AROUND.sub("", said)
    moment, source = _iso(bare, zone) or _spelled(bare, zone) or (None, "")
    if moment is None:
        day = _date(bare)
        if day is None:
            raise ValueError(f"'{said[:60]}' is no date that is known here")
        return _whole_day(day, ZoneInfo(zone) if zone != "UTC" else NEW_YORK, "assumed")
    if (moment.hour, moment.minute, moment.second, moment.microsecond) == (0, 0, 0, 0):
        return _whole_day(moment.date(), NEW_YORK if moment.utcoffset() == timedelta(0) else moment.tzinfo, source)
    utc = moment.astimezone(UTC)
    return Instant(utc, utc, source, "time")


def _whole_day(day: date, zone: object, source: str) -> Instant:
    where = zone if isinstance(zone, ZoneInfo | timezone) else NEW_YORK
    start = datetime(day.year, day.month, day.day, tzinfo=where)
    after = day + timedelta(days=1)
    end = datetime(after.year, after.month, after.day, tzinfo=where)
    return Instant(start.astimezone(UTC), end.astimezone(UTC), source, "day")


def _iso(said: str, zone: str) -> tuple[datetime, str] | None:
    if not re.match(r"\d{4}-\d{2}-\d{2}[T ]\d{2}", said):
        return None
    try:
        moment = datetime.fromisoformat(re.sub(r"\s*(?:UTC|GMT)$", "+00:00", said))
    except ValueError:
        return None
    return (moment, "offset") if moment.tzinfo else (moment.replace(tzinfo=ZoneInfo(zone)), "assumed")


def _spelled(said: str, zone: str) -> tuple[datetime, str] | None:
    match = _SPLIT.fullmatch(said)
    if match is None:
        return None
    day, clock = _date(match["date"]), match["clock"].replace(".m", "m").replace(".M", "M").strip(". ")
    if day is None:
        return None
    clock = re.sub(r"(?<=\d)(?=[AaPp][Mm])", " ", clock)
    for form in _CLOCKS:
        try:
            naive = datetime.combine(day, datetime.strptime(clock, form).time())
        except ValueError:
            continue
        return _placed(naive, (match["zone"] or "").upper(), zone)
    return None


def _placed(naive: datetime, name: str, zone: str) -> tuple[datetime, str] | None:
    if name in (*_ABBREVIATIONS, "ET"):
        return _of_new_york(naive, name)
    if name in _OFFSETS:
        return naive.replace(tzinfo=timezone(timedelta(hours=_OFFSETS[name]))), "offset"
    if name:
        digits = name.replace(":", "")
        if not re.fullmatch(r"[+-]\d{4}", digits):
            return None
        if digits == "-0000":  # the sender does not say
            return naive.replace(tzinfo=UTC), "assumed"
        minutes = (int(digits[1:3]) * 60 + int(digits[3:])) * (-1 if digits[0] == "-" else 1)
        return naive.replace(tzinfo=timezone(timedelta(minutes=minutes))), "offset"
    return naive.replace(tzinfo=ZoneInfo(zone)), "assumed"


def _of_new_york(naive: datetime, name: str) -> tuple[datetime, str]:
    """The wall clock of New York; the abbreviation decides in the hour that comes twice."""
    for fold in (0, 1):
        moment = naive.replace(tzinfo=NEW_YORK, fold=fold)
        if name == "ET" or moment.utcoffset() == timedelta(hours=_ABBREVIATIONS[name]):
            return moment, "abbreviation"
    return naive.replace(tzinfo=NEW_YORK), "wall clock"


def _date(said: str) -> date | None:
    text = said.strip(" ,").title() if not said[:1].isdigit() else said.strip(" ,")
    for form in _DATES:
        try:
            return datetime.strptime(text, form).date()
        except ValueError:
            continue
    return None
