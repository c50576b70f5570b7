"""Stage normalise: fetched contents become articles and prices, with dates, addresses and texts of one kind, or quarantine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, time
from functools import partial
from typing import Any

from instar.data.finance import tables, times, urls
from instar.data.finance.catalogue import Cell
from instar.data.finance.duplicates import simhash
from instar.data.finance.raw import RawItem, RawStore
from instar.data.finance.sources import NewsRecord, PriceRecord, Reject, Source
from instar.data.finance.words import digest, plain
from instar.errors import DataError

CODE = (
    "normalise.py", "times.py", "urls.py", "words.py", "duplicates.py", "feeds.py", "dumps.py", "json_api.py", "prices.py",
    "reading.py", "tables.py",
)  # fmt: skip


_LARGE = 256 * 1024
"""Bytes."""


def cells(raw: RawStore, items: Sequence[RawItem], sources: Mapping[str, Source], code: str) -> Iterator[Cell]:
    """A cell for each day on which a source gave something new, and for each large content, so that it is read once."""
    days: dict[str, list[RawItem]] = {}
    for item in items:
        if item.sha256 and item.source in sources:
            large = f"/{item.sha256[:12]}" if item.size >= _LARGE else ""
            days.setdefault(f"{item.source}/{item.retrieved:%Y-%m-%d}{large}", []).append(item)
    for key, found in sorted(days.items()):
        found.sort(key=lambda item: (item.sha256, item.url, item.retrieved_at))
        given = sources[found[0].source]
        facts = [given.kind, sorted(given.settings.items()), [repr(item) for item in found]]
        inputs = tables.digest("normalise", key, code, facts)
        yield Cell(key, inputs, partial(_made, raw, found, given))


def _made(raw: RawStore, items: Sequence[RawItem], given: Source) -> dict[str, Any]:
    rows: dict[str, list[dict[str, Any]]] = {"raw_item": [], "record": [], "price": [], "quarantine": []}
    for item in items:
        told = {name: getattr(item, name) for name in ("sha256", "source", "url", "status", "etag", "content_type", "size")}
        rows["raw_item"].append({**told, "retrieved_at": item.retrieved})
        try:
            for record in given.parse(raw.body(item.sha256), item):
                table, row = _row(record, item, given)
                rows[table].append(row)
        except DataError as error:  # the whole is nothing that can be read; what came before it is kept
            rows["quarantine"].append(_rejected(Reject(-1, str(error)), item))
    first: dict[str, dict[str, Any]] = {}
    for row in rows["record"]:  # items of one content come oldest first: one that came back has been seen before
        first.setdefault(row["key"], row)
    rows["record"] = list(first.values())
    return {name: tables.table(name, found) for name, found in rows.items()}


def _row(record: NewsRecord | PriceRecord | Reject, item: RawItem, given: Source) -> tuple[str, dict[str, Any]]:
    if isinstance(record, Reject):
        return "quarantine", _rejected(record, item)
    try:
        if isinstance(record, PriceRecord):
            return "price", _bar(record, item)
        return "record", _article(record, item, given.settings)
    except ValueError as error:
        return "quarantine", _rejected(Reject(record.place, str(error)), item)


def _bar(record: PriceRecord, item: RawItem) -> dict[str, Any]:
    """The row of a session of prices. Raises ValueError for a day that none can have."""
    times.check(datetime.combine(record.session, time.min, UTC), item.retrieved, record.session.isoformat())
    names = ("symbol", "session", "open", "high", "low", "close", "adj_close", "volume")
    values = {name: getattr(record, name) for name in names}
    return {**values, "source": item.source, "raw": item.sha256, "as_of": item.retrieved}


def _article(record: NewsRecord, item: RawItem, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The row of an article. Raises ValueError where it has no date, or neither address nor text."""
    when = times.parse(record.date, item.retrieved, zone=settings["zone"], clock=settings["clock"])
    said = {name: plain(getattr(record, name)) for name in ("title", "body", "publisher", "author")}
    address = plain(record.url)
    try:
        canonical = urls.canonical(address)
    except ValueError:
        canonical = ""  # javascript:, mailto:, a relative link: no address of an article, which may still have a text
    if not canonical and not said["title"] and not said["body"]:
        raise ValueError(f"the article has neither text nor an address of the web ({address[:60]!r})")
    row = {
        # Not of the content alone: the same bytes under another name or in another source may be about another symbol.
        "key": tables.digest(item.source, item.url, item.sha256, record.place),
        "source": item.source,
        "raw": item.sha256,
        "place": record.place,
        "url": address,
        "url_canonical": canonical,
        **said,
        "body_hash": digest(said["body"]),
        "simhash": simhash(f"{said['title']}\n{said['body']}"),
        "published_at_utc": when.published,
        "known_at_utc": when.known,
        "tz_source": when.zone,
        "time_precision": when.precision,
        "first_seen_at": item.retrieved,
        "symbols": sorted({plain(symbol).upper() for symbol in record.symbols if plain(symbol)}),
        "given": record.score,
    }
    return {**row, "digest": tables.digest(sorted(row.items()))}


def _rejected(record: Reject, item: RawItem) -> dict[str, Any]:
    reason = plain(record.reason)[:500]
    return {"source": item.source, "raw": item.sha256, "place": record.place, "stage": "normalise", "reason": reason}
