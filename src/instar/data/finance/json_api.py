"""News from an interface that answers JSON, page after page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import urljoin

from instar.data.finance.raw import RawItem
from instar.data.finance.reading import decoded, fetched, listed, number
from instar.data.finance.sources import Item, NewsRecord, Record, Reject
from instar.data.finance.transport import Response, Transport
from instar.errors import DataError, ShapeError

_FIELDS = ("date", "url", "title", "body", "publisher", "author", "symbols", "score")
_PAGES = 1000


class JsonApi:
    """An interface over HTTP.

    Args:
        name: of the source. urls: first pages; {since} in one becomes the day of the last whole round. rows: path to the list of
            articles, in dots ("data.items"; "" where the answer is the list). fields: paths within an article to date, url,
            title, body, publisher, author, symbols, score. next: path to the address of the next page, where there are several.
        zone, clock, per_minute: as of a dump.

    Keys for an interface belong into its address, which is kept in the manifest of the store: use ones that may be read there.
    """

    kind = "news"

    def __init__(
        self,
        name: str,
        *,
        urls: Sequence[str],
        fields: Mapping[str, str],
        rows: str = "",
        next: str = "",
        zone: str = "UTC",
        clock: str = "true",
        per_minute: float = 30,
    ) -> None:
        if unknown := sorted(fields.keys() - set(_FIELDS)):
            raise ShapeError(f"The source {name} names the fields {', '.join(unknown)}; there are {', '.join(_FIELDS)}.")
        if "date" not in fields:
            raise ShapeError(f"The source {name} does not say which field is the date.")
        self.name, self.urls, self.rows, self.fields, self.per_minute = name, urls, rows, dict(fields), per_minute
        self.following = next
        self.settings: Mapping[str, Any] = {"rows": rows, "fields": self.fields, "zone": zone, "clock": clock}
        self._next: str | None = None
        self._broken: list[str] = []

    def list(self, since: datetime | None, cursor: Mapping[str, str]) -> Iterator[Item]:
        """First pages, and after each the page that it names, 1,000 at most.

        Where pages name others, they are asked without their tags: 304 does not say which is the next. Raises DataError at the
        end where a page could not be followed, so that its round is not taken for whole.
        """
        self._broken = []
        tags = {} if self.following else cursor
        day = since.date().isoformat() if since else "1970-01-01"
        for first in listed([url.replace("{since}", day) for url in self.urls], tags, self.name):
            yield first
            seen = {first.location}
            while self._next and self._next not in seen and len(seen) < _PAGES:
                seen.add(self._next)
                yield Item(self._next)
        if self._broken:
            raise DataError(" ".join(self._broken))

    def fetch(self, item: Item, transport: Transport) -> Response:
        """See `Source.fetch`; the address of the next page is remembered for `list`."""
        self._next = None
        answer = fetched(item, transport)
        if self.following and answer.good:
            try:
                found = _at(json.loads(answer.body), self.following)
                self._next = urljoin(item.location, found) if isinstance(found, str) and found else None
            except (ValueError, RecursionError) as error:
                self._broken.append(f"{item.location} names no next page that can be read: {str(error)[:200]}.")
        return answer

    def parse(self, body: bytes, raw: RawItem) -> Iterator[Record]:
        """An object of the list is an article."""
        try:
            rows = _at(json.loads(decoded(body, raw.url)), self.rows)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{raw.url} is no JSON: {str(error)[:200]}.") from error
        if not isinstance(rows, list):
            raise DataError(f"{raw.url} has no list at '{self.rows}'.")
        for place, row in enumerate(rows):
            yield self._record(place, row)

    def _record(self, place: int, row: Any) -> Record:
        found = {name: _at(row, path) for name, path in self.fields.items()}
        if found["date"] in (None, ""):
            return Reject(place, f"the article has no date at '{self.fields['date']}'")
        symbols = found.pop("symbols", None) or []
        if not isinstance(symbols, str | list):
            return Reject(place, f"the symbols are neither a text nor a list: {str(symbols)[:60]}")
        try:
            score = number(found.pop("score", None))
        except ValueError as error:
            return Reject(place, f"the score is no number: {error}")
        named = tuple(str(one) for one in ([symbols] if isinstance(symbols, str) else symbols))
        texts = {name: "" if value is None else str(value) for name, value in found.items()}
        return NewsRecord(place=place, symbols=named, score=score, **texts)


def _at(value: Any, path: str) -> Any:
    for key in path.split(".") if path else ():
        if isinstance(value, dict):
            value = value.get(key)
        elif isinstance(value, list) and key.isdigit() and int(key) < len(value):
            value = value[int(key)]
        else:
            return None
    return value
