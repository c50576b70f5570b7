"""Which companies an article is about: symbols that were valid on its day, found by rules that say why."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from instar.errors import DataError

_COMMON_WORDS = """
A ALL AN ANY ARE AS AT BE BIG BY CAN CAR CEO CEOS CFO DAY DD DO EAT EPS ET ETF EV FAST FOR FUN FUND GAS GDP GO GOOD GROW
HAS HE HOPE IT JOB KEY LIFE LOW LOVE MAIN MAN MAR MAY NEW NEXT NICE NOW OLD ON ONE OPEN OR OUT PAY PLAY POST REAL RUN
SAFE SAVE SEE SO STAY TAX TECH TELL TV TWO UK US USA WELL WORK YOU
"""
_COMMON = frozenset(_COMMON_WORDS.split())
"""Tickers that are words or everyday abbreviations: in capitals they name a company only with an exchange or a cashtag."""
_EXCHANGES = r"(?:NYSE(?:\s?(?:American|Arca|MKT))?|NASDAQ(?:\s?[GC][SM])?|Nasdaq|AMEX|OTC(?:MKTS|QB|QX)?|TSX|LSE)"
_SYMBOL = re.compile(r"[A-Z0-9^][A-Z0-9.\-^=]{0,11}")
_RELEVANCE = {"given": 1.0, "cashtag": 1.0, "exchange": 1.0, "name": 0.9, "ticker": 0.8}
_IN_BODY = 0.7
"""Times the relevance where the title does not say it."""


@dataclass(frozen=True)
class Symbol:
    """A ticker in the days when it named this company; the same ticker may come again for another one."""

    symbol: str
    names: tuple[str, ...] = ()
    first: date = date.min
    last: date = date.max

    def valid(self, day: date) -> bool:
        return self.first <= day <= self.last


@dataclass(frozen=True)
class Link:
    """A company that an article is about."""

    symbol: str
    relevance: float
    rule: str
    """given, cashtag, exchange, name or ticker."""


def read_symbols(path: Path) -> list[Symbol]:
    """A CSV with the column symbol, and where known name, aliases (between |), from and to (ISO days, both in).

    Delisted companies belong in it, or the table is one of survivors. Raises DataError with the line.
    """
    found = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            if "symbol" not in (reader.fieldnames or ()):
                raise DataError(f"{path} expects a column symbol; it has {', '.join(reader.fieldnames or ()) or 'none'}.")
            for row in reader:
                try:
                    if None in row:  # a comma inside a name, which would move the rest by a column
                        raise ValueError('more fields than the header; a name with a comma in it stands between quotes ("…")')
                    found.append(_symbol({key: (value or "").strip() for key, value in row.items()}))
                except ValueError as error:
                    raise DataError(f"{path}, line {reader.line_num}: {error}.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is no CSV in UTF-8: {error}.") from error
    return found


def _symbol(row: dict[str, str]) -> Symbol:
    symbol = row["symbol"].upper()
    if not _SYMBOL.fullmatch(symbol):
        raise ValueError(f"'{row['symbol'][:20]}' is no symbol: letters, digits, dots and dashes, 12 at most")
    names = tuple(name.strip() for name in [row.get("name", ""), *row.get("aliases", "").split("|")] if len(name.strip()) > 1)
    days = [date.fromisoformat(row[key]) if row.get(key) else limit for key, limit in (("from", date.min), ("to", date.max))]
    if days[1] < days[0]:
        raise ValueError(f"{symbol} ends on {days[1]}, before it begins on {days[0]}")
    return Symbol(symbol, names, *days)


class Linker:
    """Finds the symbols of a table in texts.

    Without a table, symbols that a source gives are believed and nothing else is found.
    """

    def __init__(self, table: Sequence[Symbol]) -> None:
        self.table = {symbol: [row for row in table if row.symbol == symbol] for symbol in {row.symbol for row in table}}
        self._named: dict[str, list[Symbol]] = {}
        for row in table:
            for name in row.names:
                for written in (name, name.upper()):  # "apple" in a recipe is no company
                    self._named.setdefault(written, []).append(row)
        self._names = _alternatives(self._named)
        self._tickers = _alternatives(symbol for symbol in self.table if len(symbol) > 1 and symbol not in _COMMON)

    def valid(self, symbol: str, day: date) -> bool:
        """Whether the table knows the symbol on that day; without a table, whatever looks like one."""
        if not self.table:
            return _SYMBOL.fullmatch(symbol) is not None
        return any(row.valid(day) for row in self.table.get(symbol, ()))

    def links(self, title: str, body: str, given: Iterable[str], day: date) -> tuple[list[Link], list[str]]:
        """(links, sorted by symbol, with the rule that says most; symbols that the source gives and the table does not know)."""
        found: dict[str, Link] = {}

        def add(symbol: str, rule: str, share: float = 1.0) -> None:
            link = Link(symbol, round(_RELEVANCE[rule] * share, 4), rule)
            if self.valid(symbol, day) and (symbol not in found or found[symbol].relevance < link.relevance):
                found[symbol] = link

        asked = {symbol.upper() for symbol in given}
        for symbol in asked:
            add(symbol, "given")
        if self.table:
            for text, share in ((title, 1.0), (body, _IN_BODY)):
                for symbol in re.findall(r"(?<![\w$])\$([A-Z][A-Z.\-]{0,11})\b", text):
                    add(symbol.rstrip(".-"), "cashtag", share)
                for symbol in re.findall(rf"\b{_EXCHANGES}\s*:\s*([A-Z][A-Z.\-]{{0,11}})\b", text):
                    add(symbol.rstrip(".-"), "exchange", share)
                for name in self._names.findall(text):
                    for row in self._named[name]:
                        if row.valid(day):  # the ticker may be another company's by now
                            add(row.symbol, "name", share)
                if not text.isupper():  # in a text all in capitals, capitals say nothing
                    for symbol in self._tickers.findall(text):
                        add(symbol, "ticker", share)
        return [found[symbol] for symbol in sorted(found)], sorted(asked - found.keys())


def _alternatives(texts: Iterable[str]) -> re.Pattern[str]:
    """Any of the texts, whole words, the longest that fits."""
    inner = "|".join(re.escape(text) for text in sorted(texts, key=lambda text: (-len(text), text))) or r"(?!)"
    return re.compile(rf"(?<![\w$])(?:{inner})(?!\w|\.\w)")
