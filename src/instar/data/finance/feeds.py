"""RSS and Atom, by feedparser."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from instar import extras
from instar.data.finance.raw import RawItem
from instar.data.finance.reading import fetched, listed
from instar.data.finance.sources import Item, NewsRecord, Record, Reject
from instar.data.finance.transport import Response, Transport
from instar.errors import DataError

_MOST = 10_000
"""Entries of one feed that are read."""


class Feed:
    """Feeds of news.

    Args:
        name: of the source. urls: addresses or files of feeds. symbols: what every entry is about, in a feed of one company.
        zone: of dates without one. per_minute: most requests to a host.

    A document type with entities is refused before any parser sees it (they can grow without end or read files); what is left
    of a broken document is read as far as feedparser mends it. Markup becomes plain text later, scripts and styles left out.
    """

    kind = "news"

    def __init__(
        self, name: str, *, urls: Sequence[str], symbols: Sequence[str] = (), zone: str = "UTC", per_minute: float = 30
    ) -> None:
        self.name, self.urls, self.symbols, self.per_minute = name, urls, tuple(symbols), per_minute
        self.settings: Mapping[str, Any] = {"symbols": list(symbols), "zone": zone, "clock": "true"}

    def list(self, since: datetime | None, cursor: Mapping[str, str]) -> Iterator[Item]:
        """All feeds, whatever `since` says: a feed shows what it shows."""
        return listed(self.urls, cursor, self.name)

    def fetch(self, item: Item, transport: Transport) -> Response:
        """See `Source.fetch`."""
        return fetched(item, transport)

    def parse(self, body: bytes, raw: RawItem) -> Iterator[Record]:
        """An entry is an article: link, title, the longest of its texts, the date of publication, or else of its update."""
        feedparser = extras.require("feedparser", "finance")
        if b"<!ENTITY" in body.replace(b"\0", b"").upper():
            raise DataError(f"{raw.url} declares entities in its document type, which no feed needs: it was not parsed.")
        headers = {"content-type": raw.content_type} if raw.content_type else {}
        try:
            found = feedparser.parse(io.BytesIO(body), response_headers=headers)
        except (ValueError, OverflowError) as error:  # of references to characters that there are not, such as &#xD800;
            raise DataError(f"{raw.url} is no feed that can be read: {str(error)[:200]}.") from error
        if not found.get("version") and not found.entries:
            reason = str(found.get("bozo_exception") or "no root of RSS or Atom")
            raise DataError(f"{raw.url} is no feed that can be read: {' '.join(reason.split())[:200]}.")
        for place, entry in enumerate(found.entries[:_MOST]):
            yield self._record(place, entry)
        if len(found.entries) > _MOST:
            yield Reject(_MOST, f"the feed has {len(found.entries)} entries; those beyond {_MOST} were not read")

    def _record(self, place: int, entry: Any) -> Record:
        date = str(entry.get("published") or entry.get("updated") or entry.get("created") or "")
        if not date:
            return Reject(place, "the entry has no date")
        texts = [str(part.get("value", "")) for part in entry.get("content", [])] + [str(entry.get("summary", ""))]
        return NewsRecord(
            place=place,
            date=date,
            url=str(entry.get("link", "")),
            title=str(entry.get("title", "")),
            body=max(texts, key=len),
            publisher=str((entry.get("source") or {}).get("title", "")),
            author=str(entry.get("author", "")),
            symbols=self.symbols,
        )
