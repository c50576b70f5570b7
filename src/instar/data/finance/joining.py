"""Stages align and build: each article to its session, and each symbol's sessions to one table."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from functools import partial
from itertools import compress
from typing import Any

import numpy as np

from instar import extras
from instar.data.finance import compat, features, tables, texts
from instar.data.finance.catalogue import Catalogue, Cell
from instar.data.finance.config import Config
from instar.data.finance.features import Bars, News
from instar.data.finance.sessions import Sessions, align, day_number, day_of, look_ahead, micros, sessions

ALIGN = ("joining.py", "sessions.py", "times.py", "tables.py")
BUILD = ("joining.py", "features.py", "compat.py", "scoring.py", "tables.py")
_AROUND = 40
"""Days of the calendar beyond a month that its alignment may need."""
_MONTH = 31
"""Days of the longest one."""
_NOWHERE = {"source": "", "raw": "", "place": -1}
"""Of what is quarantined and came from no single record."""


def aligned(catalogue: Catalogue, build: str, config: Config, code: str) -> Iterator[Cell]:
    """The session of each article and copy, for each of its symbols, month by month."""
    parts = {
        name: catalogue.parts(build, name, stage)
        for name, stage in {"article": "dedupe", "duplicate": "dedupe", "article_symbol": "link"}.items()
    }
    if not parts["article"]:
        return
    months = sorted(parts["article"])
    edges = (day_number(_first(months[0])) - _AROUND, day_number(_first(months[-1])) + _MONTH + _AROUND)
    calendar = sessions(config.calendar, *map(day_of, edges))
    copied = _symbols_of_copies(catalogue, parts)
    for month in months:
        if month not in parts["article_symbol"]:
            continue
        start = day_number(_first(month))
        near = calendar.between(start - _AROUND, start + _MONTH + _AROUND)
        again = copied.get(month, {})
        facts = [config.alignment, near.sha256, sorted(again.items())]
        inputs = tables.digest("align", month, code, facts, [parts[name][month] for name in sorted(parts)])
        shas = {name: found[month] for name, found in parts.items()}
        yield Cell(month, inputs, partial(_aligned, catalogue, config, shas, again, near))


def _symbols_of_copies(catalogue: Catalogue, parts: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, list[str]]]:
    """Month of a copy -> its article, which may be of an earlier month -> the article's symbols."""
    wanted = {
        month: set(catalogue.read("duplicate", [sha], ["article"]).column("article").to_pylist())
        for month, sha in parts["duplicate"].items()
    }
    asked = set().union(*wanted.values()) if wanted else set()
    symbols: dict[str, list[str]] = defaultdict(list)
    for sha in parts["article_symbol"].values() if asked else ():
        for row in catalogue.read("article_symbol", [sha], ["article", "symbol"]).to_pylist():
            if row["article"] in asked:
                symbols[row["article"]].append(row["symbol"])
    return {
        month: {article: symbols[article] for article in sorted(found) if article in symbols}
        for month, found in wanted.items()
        if found
    }


def _aligned(
    catalogue: Catalogue, config: Config, shas: Mapping[str, str], again: Mapping[str, Sequence[str]], calendar: Sessions
) -> dict[str, Any]:
    links: dict[str, list[str]] = defaultdict(list)
    for row in catalogue.read("article_symbol", [shas["article_symbol"]], ["article", "symbol"]).to_pylist():
        links[row["article"]].append(row["symbol"])
    columns = ["id", "published_at_utc", "known_at_utc"]
    found, lost = [], []
    for table, copy in (("article", False), ("duplicate", True)):
        rows = catalogue.read(table, [shas[table]], columns + (["article"] if copy else ["source", "raw", "place"])).to_pylist()
        covered = calendar.covers(np.array([micros(row["known_at_utc"]) for row in rows], np.int64))
        for row in compress(rows, ~covered):
            where = {name: row.get(name, none) for name, none in _NOWHERE.items()}
            when = f"{row['known_at_utc']:%Y-%m-%d %H:%M} UTC"
            reason = f"it became known at {when}, which lies outside the sessions that {calendar.name} knows: it has no session"
            lost.append({**where, "stage": "align", "reason": reason})
        rows = list(compress(rows, covered))
        published, known = (np.array([micros(row[name]) for row in rows], np.int64) for name in columns[1:])
        days = align(published, known, config.alignment, calendar)
        early = look_ahead(published, known, calendar)
        for row, day, ahead in zip(rows, days.tolist(), early.tolist(), strict=True):
            symbols = again.get(row["article"], ()) if copy else links.get(row["id"], ())
            told = {"article": row["id"], "session": day_of(day), "rule": config.alignment, "copy": copy, "look_ahead": ahead}
            found += [{**told, "symbol": symbol} for symbol in symbols]
    found.sort(key=lambda row: (row["symbol"], row["session"], row["copy"], row["article"]))
    return {"aligned": tables.table("aligned", found), "quarantine": tables.table("quarantine", lost)}


def built(catalogue: Catalogue, build: str, config: Config, code: str, build_id: str) -> Iterator[Cell]:
    """The table `daily` of each symbol."""
    news = _news(catalogue, build, config)
    bars = _where(catalogue, build)
    if not news and not bars:
        return
    days = [one.day for found in news.values() for one in found]
    reached = [day_of(edge) for edge in (min(days), max(days))] if days else []
    edges = [*reached, *(edge for found in bars.values() for _, first, last in found for edge in (first, last))]
    calendar = sessions(config.calendar, min(edges), max(edges))
    for symbol in sorted(news.keys() | bars.keys()):
        mine, parts = news.get(symbol, []), [sha for sha, _, _ in bars.get(symbol, [])]
        reach = [*(one.day for one in mine), *(day_number(edge) for _, *both in bars.get(symbol, []) for edge in both)]
        near = calendar.between(min(reach), max(reach))
        facts = [config.alignment, config.rate, config.window, near.sha256, build_id]
        inputs = tables.digest("build", symbol, code, facts, _hash(mine), parts)
        yield Cell(symbol, inputs, partial(_daily, catalogue, config, build_id, symbol, mine, parts, near))


def _daily(
    catalogue: Catalogue,
    config: Config,
    build_id: str,
    symbol: str,
    news: Sequence[News],
    parts: Sequence[str],
    calendar: Sessions,
) -> dict[str, Any]:
    bars = _bars(catalogue, symbol, parts)
    lost = []
    if config.alignment == "fnspid_compat":
        rows = _compat(symbol, news, bars)
    else:
        rows = features.daily(symbol, news, bars, calendar.days, rate=config.rate, window=config.window)
        strange = sorted({int(day) for one in bars for day in one.days} - set(calendar.days.tolist()))
        for day in strange:
            reason = f"{symbol} has a price on {day_of(day)}, on which {config.calendar} knows no session: it was left out"
            lost.append({**_NOWHERE, "stage": "build", "reason": reason})
    rows = [{"build_id": build_id, **row} for row in rows]
    return {"daily": tables.table("daily", rows), "quarantine": tables.table("quarantine", lost)}


def _compat(symbol: str, news: Sequence[News], bars: Sequence[Bars]) -> list[dict[str, Any]]:
    if not bars or not any(one.score is not None for one in news):
        return []
    days, values = compat.integrate(news, bars[-1])
    names = ("open", "high", "low", "close", "adj_close", "volume", "decayed", "news_flag", "scaled_sentiment")
    rows = [dict(zip(names, row, strict=True)) for row in values.tolist()]
    return [
        {**row, "news_flag": int(row["news_flag"]), "symbol": symbol, "session": day} for day, row in zip(days, rows, strict=True)
    ]


def _news(catalogue: Catalogue, build: str, config: Config) -> dict[str, list[News]]:
    """What stands aligned to each symbol, with the scores of the scorer that makes the features, in an order of its own."""
    made = texts.of_scorer(catalogue.parts(build, "sentiment", "score"), config.scorer)
    articles, symbols, values = _columns(catalogue.read("sentiment", made, ["article", "symbol", "score"]))
    scores = dict(zip(zip(articles, symbols, strict=True), values, strict=True))
    shas = catalogue.parts(build, "aligned", "align").values()
    table = catalogue.read("aligned", shas, ["article", "symbol", "session", "copy"])
    days = table.column("session").cast("int32").to_pylist()
    articles, symbols, copies = _columns(table.drop_columns(["session"]))
    found: dict[str, list[News]] = defaultdict(list)
    for article, symbol, day, copy in zip(articles, symbols, days, copies, strict=True):
        found[symbol].append(News(day, None if copy else scores.get((article, symbol)), copy))
    return {symbol: sorted(mine, key=_order) for symbol, mine in found.items()}


def _columns(table: Any) -> list[list[Any]]:
    return [column.to_pylist() for column in table.columns]


def _order(one: News) -> tuple[int, bool, bool, float]:
    return one.day, one.copy, one.score is None, one.score or 0.0


def _hash(news: Sequence[News]) -> str:
    """SHA-256 of what stands aligned to a symbol: of every article of the store, so that it is taken over arrays."""
    days = np.array([one.day for one in news], np.int64)
    scores = np.array([np.nan if one.score is None else one.score for one in news], np.float64)
    copies = np.array([one.copy for one in news], np.bool_)
    return hashlib.sha256(b"".join(part.tobytes() for part in (days, scores, copies))).hexdigest()


def _where(catalogue: Catalogue, build: str) -> dict[str, list[tuple[str, date, date]]]:
    """Symbol -> parts with prices of it, and their first and last day."""
    found: dict[str, list[tuple[str, date, date]]] = defaultdict(list)
    for sha in catalogue.parts(build, "price", "normalise").values():
        table = catalogue.read("price", [sha], ["symbol", "session"])
        edges = table.group_by("symbol", use_threads=False).aggregate([("session", "min"), ("session", "max")])
        for row in edges.to_pylist():
            found[row["symbol"]].append((sha, row["session_min"], row["session_max"]))
    return dict(found)


def _bars(catalogue: Catalogue, symbol: str, parts: Sequence[str]) -> list[Bars]:
    """The retrievals of a symbol's prices, oldest first."""
    pa = extras.require("pyarrow", "finance")
    read = (catalogue.read("price", [sha]) for sha in parts)
    table = pa.concat_tables([catalogue.read("price", ()), *(one.filter(_equal(one, "symbol", symbol)) for one in read)])
    keys = table.group_by(["as_of", "source", "raw"], use_threads=False).aggregate([]).to_pylist()
    found = []
    for key in sorted(keys, key=lambda key: (key["as_of"], key["source"], key["raw"])):
        mine = table
        for name, value in key.items() if len(keys) > 1 else ():
            mine = mine.filter(_equal(mine, name, value))
        days = mine.column("session").cast("int32").to_numpy()[::-1]  # of a day that stands there twice, the last
        days, last = np.unique(days, return_index=True)
        values = np.stack([mine.column(name).to_numpy()[::-1][last] for name in features.PRICES], axis=1)
        found.append(Bars(days.astype(np.int64), values))
    return found


def _equal(table: Any, column: str, value: Any) -> Any:
    compute = extras.require("pyarrow.compute", "finance")
    return compute.equal(table.column(column), value)


def _first(month: str) -> date:
    """The first day of "2024-07"."""
    return date.fromisoformat(f"{month}-01")
