"""Stages link, summarise and score: which companies an article is about, what it says in short, and how it sounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Any

from instar.data.finance import tables
from instar.data.finance.catalogue import Catalogue, Cell
from instar.data.finance.config import Config
from instar.data.finance.scoring import Opinion, Scorer, signed
from instar.data.finance.summaries import summarise
from instar.data.finance.symbols import Linker
from instar.data.finance.times import NEW_YORK

LINK = ("texts.py", "symbols.py", "tables.py")
SUMMARISE = ("texts.py", "summaries.py", "words.py", "tables.py")
SCORE = ("texts.py", "scoring.py", "sentence_scorer.py", "tables.py")


def link(catalogue: Catalogue, build: str, config: Config, code: str) -> Iterator[Cell]:
    """article_symbol of each month, and what sources name that no table knows on that day."""
    table = tables.digest(repr(sorted(config.symbols, key=repr)))
    parts = {name: catalogue.parts(build, name, "dedupe") for name in ("article", "body", "hint")}
    linker = Linker(config.symbols)
    for month in parts["article"]:
        inputs = tables.digest("link", month, code, table, [parts[name][month] for name in sorted(parts)])
        yield Cell(month, inputs, partial(_linked, catalogue, linker, {name: parts[name][month] for name in parts}))


def _linked(catalogue: Catalogue, linker: Linker, parts: Mapping[str, str]) -> dict[str, Any]:
    bodies = _texts(catalogue, parts["body"])
    hints: dict[str, list[str]] = {}
    for row in catalogue.read("hint", [parts["hint"]]).to_pylist():
        hints.setdefault(row["article"], []).append(row["symbol"])
    found, unknown = [], []
    for row in catalogue.read("article", [parts["article"]]).to_pylist():
        # Of New York, as tickers are; just before it is known, so that a day alone, which is known when it ends, is that day.
        day = (row["known_at_utc"] - timedelta(microseconds=1)).astimezone(NEW_YORK).date()
        links, lost = linker.links(row["title"], bodies[row["id"]], hints.get(row["id"], ()), day)
        if row["of"]:  # listed again for further companies: of those in its words, the first one has told
            told = {one.symbol for one in linker.links(row["title"], bodies[row["id"]], (), day)[0]}
            links = [one for one in links if one.symbol not in told]
        found += [{"article": row["id"], "symbol": one.symbol, "relevance": one.relevance, "rule": one.rule} for one in links]
        for symbol in lost:
            reason = f"{symbol[:20]} is no symbol that the table knows on {day:%Y-%m-%d}"
            unknown.append({**{name: row[name] for name in ("source", "raw", "place")}, "stage": "link", "reason": reason})
    return {"article_symbol": tables.table("article_symbol", found), "quarantine": tables.table("quarantine", unknown)}


def summarised(catalogue: Catalogue, build: str, config: Config, code: str) -> Iterator[Cell]:
    """summary of each month, in all methods; an article that has not changed keeps its row."""
    bodies, links = catalogue.parts(build, "body", "dedupe"), catalogue.parts(build, "article_symbol", "link")
    facts = [config.methods, config.count, config.bonus]
    before = catalogue.parts(build, "summary", "summarise")
    for month, body in bodies.items():
        if month in links:
            inputs = tables.digest("summarise", month, code, facts, body, links[month])
            given = (body, links[month], before.get(month))
            yield Cell(month, inputs, partial(_summaries, catalogue, config, code, *given))


def _summaries(catalogue: Catalogue, config: Config, code: str, body: str, links: str, before: str | None) -> dict[str, Any]:
    tickers: dict[str, list[str]] = {}
    for row in catalogue.read("article_symbol", [links]).to_pylist():
        tickers.setdefault(row["article"], []).append(row["symbol"])
    kept = {row["input"]: row for row in catalogue.read("summary", [before] if before else []).to_pylist()}
    found = []
    for article, text in _texts(catalogue, body).items():
        if not text or article not in tickers:
            continue  # nothing to shorten, or of no company that is followed
        asked = tickers[article] if config.bonus else []
        for method in config.methods:
            key = tables.digest(code, method, config.count, asked, text)[:32]
            said = kept[key]["text"] if key in kept else summarise(text, method, config.count, asked)
            found.append({"article": article, "method": method, "version": code[:12], "input": key, "text": said})
    return {"summary": tables.table("summary", found)}


def scored(catalogue: Catalogue, build: str, config: Config, code: str, scorers: Mapping[str, Scorer]) -> Iterator[Cell]:
    """sentiment of each month and scorer; a text that was scored by the same version keeps its score."""
    names = {"article": "dedupe", "hint": "dedupe", "body": "dedupe", "article_symbol": "link", "summary": "summarise"}
    parts = {name: catalogue.parts(build, name, stage) for name, stage in names.items()}
    before = catalogue.parts(build, "sentiment", "score")
    for name, scorer in scorers.items():
        for month in parts["summary"]:
            shas = {table: found[month] for table, found in parts.items()}
            key = f"{month}/{name}"
            facts = [scorer.name, scorer.version, config.text, config.summary]
            inputs = tables.digest("score", key, code, facts, sorted(shas.items()))
            given = (scorer, shas, before.get(key))
            yield Cell(key, inputs, partial(_opinions, catalogue, config, code, *given))


def _opinions(
    catalogue: Catalogue, config: Config, code: str, scorer: Scorer, shas: Mapping[str, str], before: str | None
) -> dict[str, Any]:
    titles = {row["id"]: row["title"] for row in catalogue.read("article", [shas["article"]], ["id", "title"]).to_pylist()}
    hints = {(row["article"], row["symbol"]): row["given"] for row in catalogue.read("hint", [shas["hint"]]).to_pylist()}
    short = {
        row["article"]: row["text"]
        for row in catalogue.read("summary", [shas["summary"]]).to_pylist()
        if row["method"] == config.summary
    }
    bodies = _texts(catalogue, shas["body"]) if config.text == "body" else {}
    kept = {row["input"]: row["score"] for row in catalogue.read("sentiment", [before] if before else []).to_pylist()}
    rows, waiting = [], dict[str, Opinion]()
    for link in catalogue.read("article_symbol", [shas["article_symbol"]]).to_pylist():
        article, symbol = link["article"], link["symbol"]
        text = {
            "title": titles[article],
            "body": bodies.get(article, ""),
            "summary": "\n".join(part for part in (titles[article], short.get(article, "")) if part),
        }[config.text]
        asked = Opinion(text, symbol, hints.get((article, symbol)))
        key = tables.digest(code, scorer.name, scorer.version, asked)[:32]
        if key not in kept:
            waiting[key] = asked
        rows.append({"article": article, "symbol": symbol, "model": scorer.name, "version": scorer.version, "input": key})
    kept |= dict(zip(waiting, scorer.rate(list(waiting.values())), strict=True))
    for row in rows:
        score = kept[row["input"]]
        row |= {"score": score, "raw": None if score is None else signed(score)}
    return {"sentiment": tables.table("sentiment", rows)}


def _texts(catalogue: Catalogue, sha: str) -> dict[str, str]:
    return {row["article"]: row["text"] for row in catalogue.read("body", [sha]).to_pylist()}


def of_scorer(parts: Mapping[str, str], name: str) -> Sequence[str]:
    """The parts of sentiment that one scorer made."""
    return [sha for cell, sha in parts.items() if cell.endswith(f"/{name}")]
