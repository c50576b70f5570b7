"""An Atom feed of what is new: methods that came, and claims whose verdict is new. Deterministic from cards and records.

An entry's id names what it is about, and a verdict's also what the verdict is, so that a verdict that changes is new to readers.
Times are those of records: a verdict's, when the last of its runs ended; a method's, when the first run of it ended, and where
there is none, the month of its paper, since a card has no date of its own [RFC 4287].
"""

from __future__ import annotations

import re
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import instar
from instar import catalogue
from instar.bench.claims import Judgement, folder_name
from instar.bench.record import Record, Store
from instar.shelf.entries import entries
from instar.shelf.views import UNJUDGED

_ATOM = "http://www.w3.org/2005/Atom"
_NAMES = uuid.uuid5(uuid.NAMESPACE_URL, "https://www.w3.org/2005/Atom#instar")
_NEVER = datetime(1970, 1, 1, tzinfo=UTC)
# What XML 1.0 has no way to write: control characters, lone surrogates and two that are no characters.
_UNWRITABLE = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Item:
    """One entry of the feed."""

    name: str
    title: str
    text: str
    updated: datetime
    category: str
    link: str = ""


def atom(judgements: Sequence[Judgement], results: Path) -> str:
    """The feed as text: methods and verdicts, newest first. What XML cannot hold is replaced by a question mark."""
    records = {folder.name: list(Store(folder).all()) for folder in sorted(results.glob("*")) if (folder / "runs").is_dir()}
    items = [*_methods(records), *_verdicts(judgements, records)]
    items.sort(key=lambda item: (-item.updated.timestamp(), item.name))
    ET.register_namespace("", _ATOM)
    feed = ET.Element(_tag("feed"))
    _text(feed, "id", _urn("feed"))
    _text(feed, "title", "Instar: methods and verdicts")
    _text(feed, "subtitle", "Published ways to update transformers that run here, and what became of their claims.")
    _text(feed, "updated", _time(max((item.updated for item in items), default=_NEVER)))
    _text(feed, "generator", "Instar").set("version", instar.__version__)
    _text(ET.SubElement(feed, _tag("author")), "name", "Instar")
    for item in items:
        _entry(feed, item)
    ET.indent(feed)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(feed, encoding="unicode") + "\n"


def _methods(records: dict[str, list[Record]]) -> Iterable[Item]:
    first = _first(records)
    known = {card.slug: entry for entry in entries() if entry.kind != "survey" for card in entry.methods}
    for slug, card in catalogue.methods().items():
        entry = known[slug]
        yield Item(
            name=f"method/{slug}",
            title=f"New method: {card.title}",
            text=f"{card.idea} Not when: {card.when_not} Try it: instar show {slug}",
            updated=first.get(slug, _month(entry.published)),
            category="method",
            link=f"https://arxiv.org/abs/{quote(entry.arxiv)}" if entry.arxiv else "",
        )


def _verdicts(judgements: Sequence[Judgement], records: dict[str, list[Record]]) -> Iterable[Item]:
    claims = {(card.slug, claim.id): claim for card, claim in catalogue.claims()}
    for j in judgements:
        if j.verdict in UNJUDGED:
            continue
        ended = [_ended(r) for r in records.get(folder_name(claims[j.method, j.claim]), ())]
        found = "" if j.value is None else f" Found: {j.value:.4g}"
        found += "" if j.interval is None else f" [{j.interval[0]:.4g}, {j.interval[1]:.4g}]"
        yield Item(
            name=f"claim/{j.method}/{j.claim}/{j.verdict}",
            title=f"{j.method}: {j.verdict}: {j.text}",
            text=f"{j.text} ({j.source}) Here: {j.verdict}.{found} Again: {j.command}",
            updated=max(ended, default=_NEVER),
            category="verdict",
        )


def _first(records: dict[str, list[Record]]) -> dict[str, datetime]:
    """When the first run of each method ended."""
    found: dict[str, datetime] = {}
    for record in (r for kept in records.values() for r in kept):
        ended = _ended(record)
        for slug in {address.partition(":")[0] for address in record["address"].split(",")} if ended != _NEVER else ():
            found[slug] = min(found.get(slug, ended), ended)
    return found


def _ended(record: Record) -> datetime:
    """When a record was finished; the beginning of time where it does not say so, or says what is no time."""
    try:
        ended = datetime.fromisoformat(str(record.get("finished", "")))
    except ValueError:
        return _NEVER
    return ended if ended.tzinfo else ended.replace(tzinfo=UTC)


def _month(published: str) -> datetime:
    try:
        return datetime.fromisoformat(f"{published[:7]}-01").replace(tzinfo=UTC)
    except ValueError:
        return _NEVER


def _entry(feed: ET.Element, item: Item) -> None:
    entry = ET.SubElement(feed, _tag("entry"))
    _text(entry, "id", _urn(item.name))
    _text(entry, "title", item.title)
    _text(entry, "updated", _time(item.updated))
    ET.SubElement(entry, _tag("category")).set("term", item.category)
    if item.link:
        ET.SubElement(entry, _tag("link")).set("href", item.link)
    _text(entry, "content", item.text).set("type", "text")


def _text(parent: ET.Element, name: str, text: str) -> ET.Element:
    found = ET.SubElement(parent, _tag(name))
    found.text = _writable(" ".join(text.split()))
    return found


def _tag(name: str) -> str:
    return f"{{{_ATOM}}}{name}"


def _urn(name: str) -> str:
    return f"urn:uuid:{uuid.uuid5(_NAMES, name)}"


def _time(when: datetime) -> str:
    return when.astimezone(UTC).replace(microsecond=0).isoformat().replace("+00:00", "Z")


def _writable(text: str) -> str:
    return _UNWRITABLE.sub("?", text)
