"""Reading a store: the daily table, its state, and whether it is whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any

from instar import extras
from instar.data.finance.catalogue import Catalogue, opened
from instar.data.finance.config import Config, read_config
from instar.data.finance.pipeline import STAGES, NewsPricePipeline
from instar.data.finance.raw import RawStore
from instar.errors import DataError, UnknownNameError


def load_daily(
    config: Config | Path | str,
    symbols: Sequence[str] | None = None,
    start: date | str | None = None,
    end: date | str | None = None,
    *,
    as_of: datetime | None = None,
) -> Any:
    """The table `daily` as a pandas frame, sorted by symbol and session; columns as in `tables`, missing values NaN.

    Args:
        config: of the store, or its TOML file. symbols: all by default. start, end: first and last session, both in.
        as_of: the table as it would have been on that instant, from what had been retrieved then: late articles and later
            versions of prices are not in it. It is built beside the main one where it is not there yet.

    What stands in the row of a session may be used from the close of that session on (alignment strict); targets begin with the
    session after it. Raises UnknownNameError for a symbol that is not there, DataError for a store that is not built.
    """
    made = config if isinstance(config, Config) else read_config(config)
    extras.require("pandas", "finance")
    pipeline = NewsPricePipeline(made, as_of=as_of)
    if as_of is not None:
        pipeline.run([name for name in STAGES if name != "ingest"])
    with opened(made.store) as catalogue:
        table = catalogue.read("daily", _parts(catalogue, pipeline.build, symbols))
    frame = table.to_pandas().sort_values(["symbol", "session"], ignore_index=True)
    for edge, keep in ((start, frame["session"].ge), (end, frame["session"].le)):
        if edge is not None:
            frame = frame[keep(_day(edge)).reindex(frame.index)]
    return frame.reset_index(drop=True)


def _parts(catalogue: Catalogue, build: str, symbols: Sequence[str] | None) -> Iterable[str]:
    parts = catalogue.parts(build, "daily", "build")
    if not parts:
        raise DataError(f"{catalogue.folder} has no table yet. Run: instar finance build CONFIG")
    for symbol in symbols if symbols is not None else ():
        if symbol not in parts:
            raise UnknownNameError.among("symbol in this store", symbol, parts)
    return parts.values() if symbols is None else [parts[symbol] for symbol in symbols]


def _day(edge: date | str) -> date:
    try:
        if isinstance(edge, datetime):  # which is a date, but compares with none
            return edge.date()
        return edge if isinstance(edge, date) else date.fromisoformat(edge)
    except ValueError as error:
        raise DataError(f"'{edge}' is no day: expected as in 2024-01-31.") from error


def status(store: Path) -> dict[str, Any]:
    """What a store holds: contents by source, rows of each table, stages and when they ran last, coverage of each symbol, why
    records were quarantined, and the share of articles that FNSPID's rule would have dated too early.
    """
    found: dict[str, Any] = {"store": str(store)}
    items = RawStore(store).items()
    found["sources"] = {
        name: {
            "contents": sum(item.source == name and bool(item.sha256) for item in items),
            "bytes": sum(item.size for item in items if item.source == name),
            "failures": sum(item.source == name and not item.sha256 for item in items),
            "last": max(item.retrieved_at for item in items if item.source == name),
        }
        for name in sorted({item.source for item in items})
    }
    with opened(store) as catalogue:
        ask = catalogue.db.execute
        found["builds"] = catalogue.builds()
        found["rows"] = dict(
            ask("SELECT name, sum(n_rows)::BIGINT FROM part WHERE build = 'main' GROUP BY ALL ORDER BY ALL").fetchall()
        )
        found["stages"] = {
            name: {"cells": cells, "last": last.isoformat()}
            for name, cells, last in ask(
                "SELECT stage, count(*), max(finished) FROM run WHERE build = 'main' GROUP BY ALL ORDER BY 3"
            ).fetchall()
        }
        rows = catalogue.read("aligned", catalogue.shas("main", "aligned"), ["article", "copy", "look_ahead"]).to_pylist()
        once = {row["article"]: row["look_ahead"] for row in rows if not row["copy"]}
        found["look_ahead_of_fnspid"] = sum(once.values()) / len(once) if once else None
        found["symbols"] = _coverage(catalogue)
        reasons = catalogue.read("quarantine", catalogue.shas("main", "quarantine"), ["stage", "source", "reason"]).to_pylist()
        found["quarantine"] = {"rows": len(reasons), "first": reasons[:20]}
        found["hashes"] = catalogue.hashes()
    return found


def _coverage(catalogue: Catalogue) -> dict[str, Any]:
    found = {}
    for symbol, sha in catalogue.parts("main", "daily", "build").items():
        rows = catalogue.read("daily", [sha], ["session", "close", "articles", "scored"]).to_pylist()
        if rows:
            found[symbol] = {
                "first": rows[0]["session"].isoformat(),
                "last": rows[-1]["session"].isoformat(),
                "sessions": len(rows),
                "without_price": sum(row["close"] is None for row in rows),
                "with_news": sum((row["articles"] or 0) > 0 for row in rows),
                "scored": sum(row["scored"] or 0 for row in rows),
            }
    return found


def verify(store: Path) -> list[str]:
    """What is wrong with a store: contents or parts of tables that are gone or whose bytes are not those of their hash."""
    found = list(RawStore(store).problems())
    with opened(store) as catalogue:
        return found + list(catalogue.problems())
