"""A small world of news and prices, in prose of our own: three companies, half a year of sessions, feeds and dumps."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import numpy as np

from instar.data.finance.config import Config
from instar.data.finance.sessions import day_of, sessions
from instar.data.finance.sources import Given
from instar.data.finance.symbols import Symbol
from instar.data.finance.transport import ReplayTransport, Response

NOW = datetime(2023, 7, 1, 12, tzinfo=UTC)
SYMBOLS = (Symbol("ALU", ("Alu Works",)), Symbol("BRK.B", ("Brook Holding",)), Symbol("CAT", ("Cato Machines",)))
_GOOD = ("profit rose strongly", "orders surged", "analysts were upbeat", "a record quarter", "margins improved")
_BAD = ("profit fell sharply", "a lawsuit was filed", "orders slumped", "analysts downgraded it", "a costly recall began")
_PLAIN = (
    "The meeting took place in the harbour town.",
    "Its workers had waited since the spring for the new hall.",
    "A spokesman read from a sheet of paper.",
    "The chairman spoke for an hour about the weather and the sea.",
    "Nobody in the room asked a question about the price of copper.",
)


def article(number: int, name: str, when: datetime) -> dict[str, Any]:
    """One article; each has words of its own, so that no two are near-duplicates."""
    draw = np.random.default_rng(number)
    said = draw.choice(_GOOD if draw.random() < 0.5 else _BAD)
    plain = [str(one) for one in draw.permutation(np.array(_PLAIN))[:3]]
    own = " ".join(f"w{draw.integers(1e9)}" for _ in range(25))
    return {
        "Date": when.strftime("%Y-%m-%d %H:%M:%S UTC"),
        "Article_title": f"{name}: {said}, report {number}",
        "Url": f"https://news.example/{number}?utm_source=feed",
        "Article": " ".join([f"{name} said that {said}.", *plain, f"The figures were {own}."]),
        "Publisher": "The Example",
    }


def articles(count: int = 60, seed: int = 0) -> list[dict[str, Any]]:
    """Articles at any hour of the first half of 2023."""
    draw = np.random.default_rng(seed)
    start = datetime(2023, 1, 9, tzinfo=UTC)
    found = []
    for number in range(count):
        name = SYMBOLS[int(draw.integers(3))].names[0]
        found.append(article(1000 * seed + number, name, start + timedelta(minutes=int(draw.integers(1, 160 * 24 * 60)))))
    return found


def jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """A dump in the layout of the hub."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def rss(rows: Sequence[dict[str, Any]], title: str = "Example news") -> bytes:
    """The same articles as a feed."""
    dates = [datetime.strptime(row["Date"], "%Y-%m-%d %H:%M:%S UTC").replace(tzinfo=UTC) for row in rows]
    items = "".join(
        f"<item><title>{row['Article_title']}</title><link>{row['Url']}</link><description>{row['Article']}</description>"
        f"<pubDate>{format_datetime(when)}</pubDate></item>"
        for row, when in zip(rows, dates, strict=True)
    )
    head = '<?xml version="1.0" encoding="utf-8"?>'
    return f'{head}<rss version="2.0"><channel><title>{title}</title>{items}</channel></rss>'.encode()


def record(folder: Path, url: str, body: bytes, status: int = 200, **headers: str) -> None:
    """A recording of an answer."""
    ReplayTransport(folder).record(Response(url, status, body, {"content-type": "application/rss+xml", **headers}))


def prices(folder: Path, last: date = date(2023, 6, 30), seed: int = 0) -> list[str]:
    """Yahoo's layout, one file for each symbol, of the sessions of the half year; the second symbol has a dividend."""
    folder.mkdir(parents=True, exist_ok=True)
    days = [day_of(int(day)) for day in sessions("XNYS", date(2023, 1, 3), last).days]
    days = [day for day in days if date(2023, 1, 3) <= day <= last]
    for place, one in enumerate(SYMBOLS):
        draw = np.random.default_rng([seed, place])
        lines, close = ["Date,Open,High,Low,Close,Adj Close,Volume"], 50.0
        for day in days:
            before, close = close, close * math.exp(0.02 * draw.normal())
            high, low = max(before, close) * 1.01, min(before, close) * 0.99
            adjusted = close * (0.98 if place == 1 and day < date(2023, 3, 1) else 1.0)
            lines.append(f"{day},{before:.6f},{high:.6f},{low:.6f},{close:.6f},{adjusted:.6f},{int(1e6 * (1 + draw.random()))}")
        (folder / f"{one.symbol}.csv").write_text("\n".join(lines) + "\n", "utf-8")
    return [str(folder / f"{one.symbol}.csv") for one in SYMBOLS]


def config(root: Path, news: Sequence[str], bars: Sequence[str], **rest: Any) -> Config:
    """A store of dumps and price files."""
    sources = [Given("dump", "dump", {"files": list(news)})] if news else []
    if bars:
        sources.append(Given("bars", "prices", {"files": list(bars)}))
    return Config(**{"store": root / "store", "sources": tuple(sources), "symbols": SYMBOLS, **rest})


def world(root: Path, count: int = 60, **rest: Any) -> Config:
    """Dump, prices and their configuration."""
    return config(root, [str(jsonl(root / "news" / "dump.jsonl", articles(count)))], prices(root / "prices"), **rest)


def clock() -> datetime:
    """It is always the same moment."""
    return NOW
