"""The published sample of FNSPID: 1,502 scored articles of Alcoa and its prices, and the table that came of them."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np

from instar.data import datasets
from instar.data.finance.compat import COLUMNS
from instar.data.finance.config import Config
from instar.data.finance.loading import load_daily, status
from instar.data.finance.pipeline import NewsPricePipeline
from instar.data.finance.sources import Given

_NAMES = ("open", "high", "low", "close", "adj_close", "volume", "decayed", "news_flag", "scaled_sentiment")


@dataclass(frozen=True)
class Compared:
    """The published table beside the one that is made here from its inputs."""

    rows: int
    published: int
    days_differ: int
    largest: float
    """Difference of any value."""
    articles: int
    look_ahead: float
    """Share of the articles that the published rule dates before the first session that closes after them."""
    moved: float
    """Share whose day the strict rule changes."""

    @property
    def same(self) -> bool:
        """To the last bit."""
        return self.rows == self.published and not self.days_differ and self.largest == 0


def config(store: Path) -> Config:
    """The pipeline that reproduces the sample, in `store`. Raises what `datasets.locate` raises."""
    paths = {path.parent.name: path for path in datasets.locate("fnspid_sample")}
    scored = Given("scored", "dump", {"files": [str(paths["scored"])], "symbol": "stem", "clock": "fnspid"})
    bars = Given("bars", "prices", {"files": [str(paths["pre_price"])], "floats": "hasty"})
    return Config(store, (scored, bars)).compat()


def compare(store: Path) -> Compared:
    """Run all stages on the published inputs, in a new store, and compare with the published output value by value."""
    made = config(store)
    NewsPricePipeline(made, now=lambda: datetime(2024, 2, 5, tzinfo=UTC)).run()
    days, values = published()
    found = load_daily(made)
    both = min(len(found), len(days))
    mine = found[list(_NAMES)].to_numpy(np.float64)
    differ = sum(one != other for one, other in zip(found["session"][:both], days[:both], strict=True))
    told = status(store)
    return Compared(
        rows=len(found),
        published=len(days),
        days_differ=differ,
        largest=float(np.abs(mine[:both] - values[:both]).max()),
        articles=told["rows"]["article"],
        look_ahead=told["look_ahead_of_fnspid"],
        moved=_moved(store),
    )


def published() -> tuple[list[date], np.ndarray]:
    """(days, values [days, 9] in the order of `compat.COLUMNS`) of the published table, read to the nearest double."""
    path = next(path for path in datasets.locate("fnspid_sample") if path.name == "aa_expected.csv")
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    values = np.array([[float(row[name]) for name in COLUMNS] for row in rows])
    return [date.fromisoformat(row["Date"][:10]) for row in rows], values


def _moved(store: Path) -> float:
    from instar.data.finance.catalogue import opened
    from instar.data.finance.sessions import align, day_of, micros, sessions

    with opened(store) as catalogue:
        rows = catalogue.read("article", catalogue.shas("main", "article"), ["published_at_utc", "known_at_utc"]).to_pylist()
    published_at, known = (
        np.array([micros(row[name]) for row in rows], np.int64) for name in ("published_at_utc", "known_at_utc")
    )
    first, last = (day_of(int(edge) // 86_400_000_000) for edge in (known.min(), known.max()))
    calendar = sessions("XNYS", first, last)
    days = [align(published_at, known, rule, calendar) for rule in ("strict", "fnspid_compat")]
    return float((days[0] != days[1]).mean())
