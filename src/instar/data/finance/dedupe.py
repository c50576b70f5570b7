"""Stage dedupe: records become articles, each once, month by month."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from itertools import accumulate, starmap
from typing import Any, NamedTuple

from instar.data.finance import tables
from instar.data.finance.catalogue import Catalogue, Cell
from instar.data.finance.duplicates import Copy, Seen, find
from instar.data.finance.sessions import day_of

CODE = ("dedupe.py", "duplicates.py", "tables.py")
_LIGHT = ("key", "digest", "title", "url_canonical", "body_hash", "simhash", "symbols", "known_at_utc")
_DAY = 24 * 3600 * 1_000_000
"""Microseconds."""
_OPEN = 8
"""Parts of records that are held open: months of one large dump all read the same part, those out of order the same groups."""


def cells(catalogue: Catalogue, build: str, code: str, *, urls: bool, near: bool) -> Iterator[Cell]:
    """A cell for each month in which something became known. Which articles stay is decided over all, on small columns."""
    parts = catalogue.parts(build, "record", "normalise")
    seen: dict[str, Seen] = {}
    where: dict[str, str] = {}
    digests: dict[str, str] = {}
    for sha in reversed(parts.values()):  # of a source the newest first: what came back has been seen before, which counts
        table = catalogue.read("record", [sha], _LIGHT)
        columns = [table.column(name) for name in _LIGHT]
        columns[-1] = columns[-1].cast("int64")  # microseconds
        keys, digest, titles, given, bodies, codes, symbols, known = (column.to_pylist() for column in columns)
        # Without an address, the same headline at the same time is the same article; without one of those, the same body.
        told = zip(given, [title or body for title, body in zip(titles, bodies, strict=True)], known, strict=True)
        addresses = [url or (f"text:{text}:{when}" if text else "") for url, text, when in told]
        named = map(frozenset, symbols)
        seen.update(zip(keys, starmap(Seen, zip(keys, addresses, known, bodies, codes, named, strict=True)), strict=True))
        where.update(dict.fromkeys(keys, sha))
        digests.update(zip(keys, digest, strict=True))
    stay, copies, same = find(list(seen.values()), urls=urls, near=near)
    others: dict[str, list[str]] = defaultdict(list)
    for key, of in same:
        others[of].append(key)
    ids = _Ids(seen, urls)
    months: dict[str, tuple[list[_Group], list[Copy]]] = defaultdict(lambda: ([], []))
    for key in stay:
        months[_month(seen[key].known // _DAY)][0].append(_Group([key, *sorted(others.get(key, ()))]))
    listed = {key: set[str]().union(*(seen[one].symbols for one in (key, *others.get(key, ())))) for key in stay}
    for copy in copies:  # in the order of their times
        groups, again = months[_month(seen[copy.key].known // _DAY)]
        again.append(copy)
        if copy.same_words and (new := seen[copy.key].symbols - listed[copy.of]):
            listed[copy.of] |= new
            groups.append(_Group([copy.key], copy.of, sorted(new)))
    records = _Records(catalogue, where)
    for month, (groups, again) in sorted(months.items()):
        # Digests are of whole records, which decide the ids.
        facts = [[[[digests[key] for key in group.told], digests.get(group.of, ""), group.symbols] for group in groups]]
        facts.append([[digests[copy.key], digests[copy.of], copy.rule] for copy in again])
        inputs = tables.digest("dedupe", month, code, urls, facts)
        yield Cell(month, inputs, partial(_made, records, ids, groups, again))


class _Group(NamedTuple):
    """The records that are one article; or a copy listed for further companies, which is an article about those from then on."""

    told: list[str]
    of: str = ""
    """The article whose words a copy has."""
    symbols: Sequence[str] = ()
    """The further companies."""


class _Ids:
    """The id of the article that a record is: computed for those cells alone that are made."""

    def __init__(self, seen: Mapping[str, Seen], urls: bool) -> None:
        self.seen, self.urls = seen, urls

    def __getitem__(self, key: str) -> str:
        url = self.seen[key].url
        return tables.digest(url if self.urls and url else key)[:32]


class _Records:
    """Whole records by key, those of a cell at once; the last few parts stay open, with what was read of them."""

    def __init__(self, catalogue: Catalogue, where: Mapping[str, str]) -> None:
        self.catalogue, self.where = catalogue, where
        self.open: dict[str, _Part] = {}

    def read(self, keys: Iterable[str]) -> dict[str, dict[str, Any]]:
        parts: dict[str, list[str]] = {}
        for key in keys:
            parts.setdefault(self.where[key], []).append(key)
        found: dict[str, dict[str, Any]] = {}
        for sha, mine in parts.items():
            found |= self._part(sha).read(mine)
        return found

    def _part(self, sha: str) -> _Part:
        if sha not in self.open:
            if len(self.open) >= _OPEN:
                del self.open[next(iter(self.open))]
            self.open[sha] = _Part(self.catalogue, sha)
        return self.open[sha]


class _Part:
    """Records of one part: a month is a few rows of a large dump, so that only the groups are read in which they stand."""

    def __init__(self, catalogue: Catalogue, sha: str) -> None:
        self.parts, self.sha = catalogue.files, sha
        self.places = {key: place for place, key in enumerate(catalogue.read("record", [sha], ["key"]).column("key").to_pylist())}
        self.ends = list(accumulate(self.parts.groups("record", sha)))
        self.groups: dict[int, Any] = {}

    def read(self, keys: Iterable[str]) -> dict[str, dict[str, Any]]:
        asked: dict[int, dict[str, int]] = defaultdict(dict)
        for key in keys:
            number = bisect_right(self.ends, self.places[key])
            asked[number][key] = self.places[key] - (self.ends[number - 1] if number else 0)
        found: dict[str, dict[str, Any]] = {}
        for number, mine in asked.items():
            if number not in self.groups:
                self.groups[number] = self.parts.group("record", self.sha, number)
            found |= zip(mine, self.groups[number].take(list(mine.values())).to_pylist(), strict=True)
        return found


def _made(records: _Records, ids: _Ids, groups: Sequence[_Group], again: Sequence[Copy]) -> dict[str, Any]:
    whole = records.read([*(key for group in groups for key in group.told), *(copy.key for copy in again)])
    rows: dict[str, list[dict[str, Any]]] = {"article": [], "body": [], "hint": [], "duplicate": []}
    for group in groups:
        found = [whole[key] for key in group.told]
        article = tables.digest(group.told[0])[:32] if group.of else ids[group.told[0]]
        longest = {
            name: max((row[name] for row in found), key=lambda text: (len(text), text)) for name in ("title", "body", "publisher")
        }
        seen_at = min(row["first_seen_at"] for row in found)
        of = ids[group.of] if group.of else ""
        rows["article"].append({**found[0], **longest, "id": article, "first_seen_at": seen_at, "of": of})
        rows["body"].append({"article": article, "text": longest["body"]})
        hints: dict[str, list[float]] = {}
        for row in found:
            for symbol in group.symbols or row["symbols"]:
                hints.setdefault(symbol, []).extend([] if row["given"] is None else [row["given"]])
        for symbol, given in hints.items():
            rows["hint"].append(
                {"article": article, "symbol": symbol, "given": sum(sorted(given)) / len(given) if given else None}
            )
    for copy in again:
        row = whole[copy.key]
        rows["duplicate"].append({**row, "id": tables.digest(copy.key)[:32], "article": ids[copy.of], "rule": copy.rule})
    order = {
        "article": ("known_at_utc", "id"),
        "body": ("article",),
        "hint": ("article", "symbol"),
        "duplicate": ("known_at_utc", "id"),
    }
    fitted = {
        name: [{column: row[column] for column in tables.schema(name).names} for row in found] for name, found in rows.items()
    }
    return {
        name: tables.table(name, sorted(found, key=lambda row: tuple(row[column] for column in order[name])))
        for name, found in fitted.items()
    }


@cache
def _month(day: int) -> str:
    """Of a day since 1970."""
    found = day_of(day)
    return f"{found:%Y-%m}"
