"""Tables of news: CSV and JSON lines, in the layout of FNSPID on the hub, its lists of headlines, and its scored articles."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any

from instar.data.finance.raw import RawItem
from instar.data.finance.reading import decoded, fetched, listed, number
from instar.data.finance.sources import Item, NewsRecord, Record, Reject
from instar.data.finance.transport import Response, Transport
from instar.errors import DataError, ShapeError

COLUMNS = {
    "date": ("date", "published", "published_at", "datetime", "time"),
    "url": ("url", "link"),
    "title": ("article_title", "headline", "title"),
    "body": ("article", "text", "body", "content"),
    "publisher": ("publisher", "source"),
    "author": ("author",),
    "symbol": ("stock_symbol", "symbol", "ticker", "symbols"),
    "score": ("sentiment_gpt", "score", "sentiment"),
}
"""Names of columns, in lower case, the first that is there."""
csv.field_size_limit(64 * 1024 * 1024)  # an article is longer than a cell of a spreadsheet


class Dump:
    """Files of many articles.

    Args:
        name: of the source. files: patterns or addresses. symbol: of all rows, or "stem" for the file's name, as in AA.csv; by
            default there is a column, in which several stand between | or blanks.
        columns: names of your own, such as {date = "when"}. zone: of dates without one. per_minute: most requests to a host.
        clock: "fnspid" for files of which FNSPID moved the times (its preprocessed and scored ones).

    Columns are found by their names (`COLUMNS`), in any case. Rows with the column Mark other than 1 have no article in
    FNSPID's files, and are left out as there. A file is read whole.
    """

    kind = "news"

    def __init__(
        self,
        name: str,
        *,
        files: Sequence[str],
        symbol: str = "",
        columns: Mapping[str, str] | None = None,
        zone: str = "UTC",
        clock: str = "true",
        per_minute: float = 30,
    ) -> None:
        if unknown := sorted((columns or {}).keys() - COLUMNS.keys()):
            raise ShapeError(f"The source {name} names the columns {', '.join(unknown)}; there are {', '.join(COLUMNS)}.")
        if clock not in ("true", "fnspid"):
            raise ShapeError(f"The source {name}: clock is true or fnspid; received {clock!r}.")
        self.name, self.files, self.symbol, self.columns, self.per_minute = name, files, symbol, dict(columns or {}), per_minute
        self.settings: Mapping[str, Any] = {"symbol": symbol, "columns": self.columns, "zone": zone, "clock": clock}

    def list(self, since: datetime | None, cursor: Mapping[str, str]) -> Iterator[Item]:
        """All files."""
        return listed(self.files, cursor, self.name)

    def fetch(self, item: Item, transport: Transport) -> Response:
        """See `Source.fetch`."""
        return fetched(item, transport)

    def parse(self, body: bytes, raw: RawItem) -> Iterator[Record]:
        """A row is an article; a row that is none is rejected with its number, and so is what a cut file ends in."""
        text = decoded(body, raw.url)
        lines = text.lstrip()[:1] in ("{", "[")
        dates = (self.columns["date"].lower(),) if "date" in self.columns else COLUMNS["date"]
        rows = _json_rows(text) if lines else _csv_rows(text, dates, raw.url)
        stem = PurePosixPath(raw.url).stem.upper() if self.symbol == "stem" else self.symbol
        for place, row in enumerate(rows):
            if isinstance(row, str):
                yield Reject(place, row)
            elif str(row.get("mark", "1")).strip() in ("1", "1.0"):
                yield self._record(place, row, stem)

    def _record(self, place: int, row: Mapping[str, Any], symbol: str) -> Record:
        def cell(what: str) -> Any:
            names = (self.columns[what].lower(),) if what in self.columns else COLUMNS[what]
            return next((row[name] for name in names if row.get(name) not in (None, "")), "")

        date, given = str(cell("date")), cell("symbol")
        if not date:
            return Reject(place, "the row has no date")
        symbols = given if isinstance(given, list) else str(given).replace("|", " ").split()
        try:
            score = number(cell("score"))
        except ValueError as error:
            return Reject(place, f"the score is no number: {error}")
        return NewsRecord(
            place=place,
            date=date,
            url=str(cell("url")),
            title=str(cell("title")),
            body=str(cell("body")),
            publisher=str(cell("publisher")),
            author=str(cell("author")),
            symbols=tuple([symbol] if symbol else [str(one) for one in symbols]),
            score=score,
        )


def _csv_rows(text: str, dates: Sequence[str], where: str) -> Iterator[dict[str, Any] | str]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip().lower() for name in next(reader, [])]
    except csv.Error as error:
        raise DataError(f"{where} has no header that can be read: {error}.") from error
    if not set(header) & set(dates):
        raise DataError(f"{where} has no column of dates; it begins with {', '.join(header)[:120] or 'nothing'}.")
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield f"line {reader.line_num}: {error}; what follows could not be read"
            return
        if cells is None:
            return
        if cells and len(cells) != len(header):
            yield f"line {reader.line_num} has {len(cells)} cells; the header has {len(header)}"
        elif cells:
            yield dict(zip(header, cells, strict=True))


def _json_rows(text: str) -> Iterator[dict[str, Any] | str]:
    for count, line in enumerate(
        text.split("\n"), 1
    ):  # str.splitlines would also cut at U+2028 and its like, which JSON may hold
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield f"line {count} is no JSON: {str(error)[:100]}"
            continue
        yield {str(key).lower(): value for key, value in row.items()} if isinstance(row, dict) else f"line {count} is no object"
