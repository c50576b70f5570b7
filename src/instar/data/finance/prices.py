"""Daily prices: CSV in Yahoo's layout, or with a column of symbols."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime
from pathlib import PurePosixPath
from typing import Any

from instar.data.finance.raw import RawItem
from instar.data.finance.reading import decoded, fetched, listed, number
from instar.data.finance.sources import Item, PriceRecord, Record, Reject
from instar.data.finance.transport import Response, Transport
from instar.errors import DataError, ShapeError

_DIGITS = 17
_LONGEST = 300
"""Digits before the point of a number that is a double for certain."""
_VALUES = ("open", "high", "low", "close", "adj close", "volume")


class Prices:
    """Files of daily bars.

    Args:
        name: of the source. files: patterns or addresses of CSVs with the columns Date, Open, High, Low, Close, Adj Close and
            Volume, in any case and order. symbol: of all rows; by default a column symbol, and without one the file's name.
        floats: exact, or hasty: off by up to a unit in the last place, as the pandas was that FNSPID's tables were made with.
        per_minute: most requests to a host.

    A bar whose high is below its low, or whose price is not above 0, is rejected; so is the second bar of a session. Where
    there is no adjusted close, it is the close.
    """

    kind = "price"

    def __init__(
        self, name: str, *, files: Sequence[str], symbol: str = "", floats: str = "exact", per_minute: float = 30
    ) -> None:
        if floats not in ("exact", "hasty"):
            raise ShapeError(f"The source {name}: floats is exact or hasty; received {floats!r}.")
        self.name, self.files, self.symbol, self.floats, self.per_minute = name, files, symbol, floats, per_minute
        self.settings: Mapping[str, Any] = {"symbol": symbol, "floats": floats}

    def list(self, since: datetime | None, cursor: Mapping[str, str]) -> Iterator[Item]:
        """All files."""
        return listed(self.files, cursor, self.name)

    def fetch(self, item: Item, transport: Transport) -> Response:
        """See `Source.fetch`."""
        return fetched(item, transport)

    def parse(self, body: bytes, raw: RawItem) -> Iterator[Record]:
        """A row is a session."""
        text = decoded(body, raw.url)
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        try:
            header = [name.strip().lower() for name in next(reader, [])]
            if lacking := {"date", *_VALUES} - {"adj close"} - set(header):
                raise DataError(f"{raw.url} expects prices; it lacks the columns {', '.join(sorted(lacking))}.")
            rows = [(reader.line_num, row) for row in reader if row]
        except csv.Error as error:
            raise DataError(f"{raw.url} is no CSV (line {reader.line_num}): {error}.") from error
        seen: set[tuple[str, date]] = set()
        stem = self.symbol or PurePosixPath(raw.url).stem
        for place, (line, cells) in enumerate(rows):
            if len(cells) != len(header):
                yield Reject(place, f"line {line} has {len(cells)} cells; the header has {len(header)}")
                continue
            row: dict[str, Any] = dict(zip(header, cells, strict=True))
            try:
                if self.floats == "hasty":
                    row |= {name: hasty(row[name]) for name in _VALUES if row.get(name)}
                record = _record(place, row, (self.symbol or row.get("symbol") or stem).upper())
                if (record.symbol, record.session) in seen:
                    raise ValueError(f"the session {record.session} of {record.symbol} stands here twice")
            except ValueError as error:
                yield Reject(place, f"line {line}: {error}")
                continue
            seen.add((record.symbol, record.session))
            yield record


def _record(place: int, row: Mapping[str, Any], symbol: str) -> PriceRecord:
    session = date.fromisoformat(str(row["date"]).strip()[:10])
    found = {name: number(row[name]) for name in _VALUES if name in row}
    if lacking := [name for name in ("open", "high", "low", "close") if found.get(name) is None]:
        raise ValueError(f"{session} lacks {', '.join(lacking)}")
    opened, high, low, close = (float(found[name] or 0) for name in ("open", "high", "low", "close"))
    if min(opened, high, low, close) <= 0 or high < low:
        raise ValueError(f"{session}: open {opened}, high {high}, low {low}, close {close} are no prices")
    adjusted, volume = found.get("adj close"), found.get("volume")
    return PriceRecord(
        place,
        symbol,
        session,
        opened,
        high,
        low,
        close,
        close if adjusted is None else adjusted,
        volume if volume is not None else float("nan"),
    )


def hasty(text: str) -> float:
    """A decimal as pandas read it by default from version 1.2 up to 2: at most 17 digits as one number, then one division.

        value = (Σ digits, each step rounded to a double) / 10^decimals

    Up to a unit in the last place off the nearest double, where a number has 16 or 17 digits.
    Numbers with an exponent or more than 300 digits before the point are read as always.
    """
    whole, _, decimals = text.strip().lstrip("-").partition(".")
    if not (whole + decimals).isdigit() or len(whole) > _LONGEST:
        return float(text)
    number, kept = 0.0, (whole + decimals)[:_DIGITS]
    for digit in kept:
        number = number * 10.0 + int(digit)
    power = max(len(whole), _DIGITS) - _DIGITS - min(len(decimals), max(_DIGITS - len(whole), 0))
    number = number / 10.0**-power if power < 0 else number * 10.0**power
    return -number if text.strip().startswith("-") else number
