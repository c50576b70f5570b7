"""Sources of news and prices behind one protocol: what there is, its bytes, and the records in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any, Protocol

from instar.data.finance.raw import RawItem
from instar.data.finance.transport import Response, Transport
from instar.errors import ShapeError, UnknownNameError


@dataclass(frozen=True)
class Item:
    """One address or file of a source."""

    location: str
    etag: str = ""
    """Of what is known of it already."""


@dataclass(frozen=True)
class NewsRecord:
    """An article as its source tells it. Dates are texts: the pipeline reads them, in one place."""

    place: int
    """Number within its raw item."""
    date: str
    url: str = ""
    title: str = ""
    body: str = ""
    publisher: str = ""
    author: str = ""
    symbols: tuple[str, ...] = ()
    score: float | None = None
    """The source's own, 1 to 5."""


@dataclass(frozen=True)
class PriceRecord:
    """A session of a symbol as its source tells it."""

    place: int
    symbol: str
    session: date
    open: float
    high: float
    low: float
    close: float
    adj_close: float
    volume: float


@dataclass(frozen=True)
class Reject:
    """A record that cannot be used, and why. It goes to quarantine; the raw store keeps it."""

    place: int
    reason: str


Record = NewsRecord | PriceRecord | Reject


class Source(Protocol):
    """What every adapter does."""

    name: str
    kind: str
    """news or price."""
    per_minute: float
    settings: Mapping[str, Any]
    """What decides how bytes are parsed: part of the key of that stage."""

    def list(self, since: datetime | None, cursor: Mapping[str, str]) -> Iterator[Item]:
        """What is to be fetched; `cursor` maps a location to the entity tag that it had. Paged sources yield as they read."""
        ...

    def fetch(self, item: Item, transport: Transport) -> Response:
        """Its bytes. Raises FetchError."""
        ...

    def parse(self, body: bytes, raw: RawItem) -> Iterator[Record]:
        """The records in it, and a Reject for each that is none. Raises DataError where the whole is nothing that can be read."""
        ...


@dataclass(frozen=True)
class Given:
    """What a configuration says about a source."""

    name: str
    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)


def source(given: Given) -> Source:
    """The adapter of a configuration. Raises UnknownNameError, ShapeError for an option that is unknown or missing."""
    known = adapters()
    if given.kind not in known:
        raise UnknownNameError.among("kind of source", given.kind, known)
    try:
        return known[given.kind](given.name, **given.options)
    except TypeError as error:
        said = str(error).partition("() ")[2] or str(error)
        raise ShapeError(
            f"The source {given.name} ({given.kind}): {said}. Options are those of the class that reads it."
        ) from error


def adapters() -> dict[str, Callable[..., Source]]:
    """The kinds of sources."""
    from instar.data.finance.dumps import Dump
    from instar.data.finance.feeds import Feed
    from instar.data.finance.json_api import JsonApi
    from instar.data.finance.prices import Prices

    return {"feed": Feed, "dump": Dump, "json": JsonApi, "prices": Prices}
