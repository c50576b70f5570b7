"""What a store is made of: sources, symbols and rules, from a TOML file or from Python."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from instar.data.finance.scoring import SCORERS
from instar.data.finance.sessions import RULES
from instar.data.finance.sources import Given, adapters
from instar.data.finance.summaries import METHODS
from instar.data.finance.symbols import Symbol, read_symbols
from instar.errors import DataError, UnknownNameError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_\-]{0,40}")
_PATHS = ("files", "urls")


@dataclass(frozen=True)
class Config:
    """Everything that decides what a store holds.

    Args:
        store: folder of the store. sources: see `sources.Given` and the adapters. symbols: the table of `symbols.read_symbols`;
            without one the symbols that sources give are believed.
        calendar: of `exchange-calendars`. alignment: strict, open, or fnspid_compat (see `sessions.align`).
        urls, near: whether articles with one address or one body, and nearly equal ones, count once.
        summary: method of the text that is scored; summaries: methods that are kept, beside it. count: sentences of each.
            bonus: count sentences with the article's tickers as FNSPID does.
        scorer: whose scores become features; scorers: further ones that are kept beside. settings: of scorers, by name.
        text: what is scored: summary (with the title before it), title or body.
        rate: λ of the decay towards neutral, a calendar day. window: sessions of the volume's z-score.
    """

    store: Path
    sources: tuple[Given, ...] = ()
    symbols: tuple[Symbol, ...] = ()
    calendar: str = "XNYS"
    alignment: str = "strict"
    urls: bool = True
    near: bool = True
    summary: str = "lsa"
    summaries: tuple[str, ...] = ()
    count: int = 3
    bonus: bool = True
    scorer: str = "lexicon"
    scorers: tuple[str, ...] = ()
    text: str = "summary"
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    rate: float = 0.05
    window: int = 20

    def __post_init__(self) -> None:
        for what, name, known in (
            ("alignment rule", self.alignment, RULES),
            ("text to score", self.text, ("summary", "title", "body")),
            *(("method of summaries", one, METHODS) for one in self.methods),
            *(("scorer", one, SCORERS) for one in self.raters),
        ):
            if name not in known:
                raise UnknownNameError.among(what, name, known)
        if self.count < 1 or self.window < 2 or not 0 <= self.rate < 100:
            raise DataError(
                f"A store has count ≥ 1, window ≥ 2 and 0 ≤ rate < 100; received {self.count}, {self.window}, {self.rate}."
            )
        named = [source.name for source in self.sources]
        for name in named:
            if not _NAME.fullmatch(name) or named.count(name) > 1:
                raise DataError(f"Sources have names of their own, of letters, digits, - and _; received '{name[:50]}'.")
        for source in self.sources:
            if source.kind not in adapters():
                raise UnknownNameError.among("kind of source", source.kind, adapters())

    @property
    def methods(self) -> list[str]:
        """All methods of summaries, the scored one first."""
        return list(dict.fromkeys((self.summary, *self.summaries)))

    @property
    def raters(self) -> list[str]:
        """All scorers, the one of the features first."""
        return list(dict.fromkeys((self.scorer, *self.scorers)))

    def compat(self) -> Config:
        """The same as FNSPID would do it: its alignment, no duplicates taken out, the scores that the source gives."""
        return replace(self, alignment="fnspid_compat", urls=False, near=False, scorer="given")


def read_config(path: Path | str) -> Config:
    """A TOML file; paths in it are relative to it. Raises DataError, UnknownNameError.

    store = "store"
    symbols = "symbols.csv"
    alignment = "strict"

    [[sources]]
    name = "wire"
    kind = "feed"                       # feed, dump, json or prices; its options are those of that adapter
    urls = ["https://example.org/rss"]

    [settings.minilm]
    most = 2000
    """
    file = Path(path).expanduser()
    try:
        table = tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}.") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DataError(f"{file} is no TOML: {error}.") from error
    known = {one.name for one in fields(Config)}
    for key in table:
        if key not in known:
            raise UnknownNameError.among(f"key in {file.name}", key, known)
    if not isinstance(table.get("store"), str):
        raise DataError(f'{file} does not say where the store is: store = "folder".')
    root = file.resolve().parent
    given: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
    given["store"] = root / table["store"]
    given["sources"] = tuple(_source(row, root, file) for row in table.get("sources", ()))
    if "symbols" in table:
        given["symbols"] = tuple(read_symbols(root / str(table["symbols"])))
    for one in fields(Config):
        if one.name in given and not _fits(str(one.type), given[one.name]):
            raise DataError(f"{file}: {one.name} is a {one.type}; received {given[one.name]!r}.")
    return Config(**given)


def _fits(kind: str, value: Any) -> bool:
    if isinstance(value, bool):  # which is an int to Python, and to nobody else
        return kind == "bool"
    return isinstance(value, {"str": str, "int": int, "float": int | float, "bool": bool}.get(kind, object))


def _source(row: Any, root: Path, file: Path) -> Given:
    if not isinstance(row, dict) or not isinstance(row.get("name"), str) or not isinstance(row.get("kind"), str):
        raise DataError(f"{file}: each of [[sources]] has a name and a kind; received {str(row)[:80]}.")
    options = {key: value for key, value in row.items() if key not in ("name", "kind")}
    for key in _PATHS:
        if isinstance(options.get(key), list):
            options[key] = [
                one if not isinstance(one, str) or one.startswith(("http://", "https://")) else str(root / one)
                for one in options[key]
            ]
    return Given(row["name"], row["kind"], options)
