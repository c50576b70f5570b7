"""A store of news and prices: an update by the newest hundredth of the articles beside a build of all, by length of the articles.

python benchmarks/finance.py [--articles 10000] [--rounds 3]

Both end in the same table hashes, which is checked. The articles are made up (a dump's licence would not let them be shipped); 60
words is a headline with a teaser, 450 words an article as in FNSPID's dumps; as there, a company has an article a session.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import tempfile
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
from turns import spread, turns

from instar.data.finance.catalogue import opened
from instar.data.finance.config import Config
from instar.data.finance.pipeline import NewsPricePipeline
from instar.data.finance.sessions import day_of, sessions
from instar.data.finance.sources import Given
from instar.data.finance.symbols import Symbol

RESULT = Path(__file__).parent / "results" / "finance.json"
WORDS = (60, 450)
_NAMES = ("Alder Foods", "Birch Steel", "Cedar Bank", "Elm Motors")
SYMBOLS = tuple(Symbol("".join(word[:2] for word in name.upper().split()), (name,)) for name in _NAMES)
_START, _DAYS = datetime(2014, 1, 6, tzinfo=UTC), 3600
_NOW = datetime(2024, 6, 1, 12, tzinfo=UTC)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--articles", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    found = []
    for words in WORDS:
        with tempfile.TemporaryDirectory() as folder:
            found.append(measure(Path(folder), given.articles, words, given.rounds))
        line = found[-1]
        print(
            f"{words:>4} words  build {line['build']['min']:.2f} s  update {line['update']['min']:.3f} s  "
            f"nothing new {line['nothing_new']['min']:.3f} s  (processor)  update / build {line['share']:.3f}"
        )
    RESULT.write_text(json.dumps({"articles": given.articles, "symbols": len(SYMBOLS), "lengths": found}, indent=1) + "\n")


def measure(root: Path, articles: int, words: int, rounds: int) -> dict[str, object]:
    """Seconds of the processor: a build of everything, an update by the newest hundredth, and a run that finds nothing new."""
    bars, old, new = prices(root / "prices"), root / "old.jsonl", root / "new.jsonl"
    newest = articles // 100
    dump(old, range(articles - newest), articles, words)
    dump(new, range(articles - newest, articles), articles, words)
    before = run(root / "before", [old], bars)
    ends: dict[str, dict[str, str]] = {}

    def build() -> None:
        ends["build"] = run(fresh(root / "build"), [old, new], bars)

    def update() -> None:
        ends["update"] = run(root / "update", [old, new], bars)

    def prepared() -> None:
        shutil.copytree(root / "before", fresh(root / "update"), dirs_exist_ok=True)

    taken = turns({"build": build, "prepared": prepared, "update": update, "nothing_new": update}, rounds, warm=0)
    assert before != ends["build"] == ends["update"], "An update must end where a build of everything ends."
    line: dict[str, object] = {"words": words, "rounds": rounds}
    line |= {name: spread(taken[name].cpu) for name in ("build", "update", "nothing_new")}
    return line | {"share": min(taken["update"].cpu) / min(taken["build"].cpu)}


def run(store: Path, news: list[Path], bars: list[str]) -> dict[str, str]:
    """Bring a store up to date with these files; the hashes of its tables."""
    sources = (Given("dump", "dump", {"files": list(map(str, news))}), Given("bars", "prices", {"files": bars}))
    NewsPricePipeline(Config(store=store, sources=sources, symbols=SYMBOLS), now=lambda: _NOW).run()
    with opened(store) as catalogue:
        return catalogue.hashes()


def fresh(folder: Path) -> Path:
    """A folder that is not there."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def dump(path: Path, numbers: range, articles: int, words: int) -> None:
    """Articles as JSON lines, evenly over ten years; each in words of its own."""
    with path.open("w", encoding="utf-8") as file:
        for number in numbers:
            draw = np.random.default_rng(number)
            name = _NAMES[int(draw.integers(len(_NAMES)))]
            said = draw.choice(("profit rose strongly", "orders surged", "profit fell sharply", "a lawsuit was filed"))
            body = [f"{name} said that {said}."]
            body += [_sentence(draw) for _ in range(words // 15)]
            when = _START + timedelta(minutes=_DAYS * 1440 * number / articles)
            row = {
                "Date": when.strftime("%Y-%m-%d %H:%M:%S UTC"),
                "Article_title": f"{name}: {said}, report {number}",
                "Url": f"https://news.example/{number}",
                "Article": " ".join(body),
                "Publisher": "The Example",
            }
            file.write(json.dumps(row) + "\n")


def _sentence(draw: np.random.Generator) -> str:
    """Fifteen words of a vocabulary with Zipf's frequencies."""
    found = np.minimum(draw.zipf(1.3, 15), 20_000)
    return " ".join(f"w{word}" for word in found).capitalize() + "."


def prices(folder: Path) -> list[str]:
    """Yahoo's layout, a file for each symbol."""
    folder.mkdir(parents=True)
    first, last = _START.date(), date(2023, 12, 29)
    days = [day for day in (day_of(int(number)) for number in sessions("XNYS", first, last).days) if first <= day <= last]
    for place, one in enumerate(SYMBOLS):
        draw = np.random.default_rng(place)
        close = 50.0
        lines = ["Date,Open,High,Low,Close,Adj Close,Volume"]
        for day in days:
            before, close = close, close * math.exp(0.02 * draw.normal())
            high, low = max(before, close) * 1.01, min(before, close) * 0.99
            lines.append(f"{day},{before:.6f},{high:.6f},{low:.6f},{close:.6f},{close:.6f},{int(1e6 * (1 + draw.random()))}")
        (folder / f"{one.symbol}.csv").write_text("\n".join(lines) + "\n", "utf-8")
    return [str(folder / f"{one.symbol}.csv") for one in SYMBOLS]


if __name__ == "__main__":
    main()
