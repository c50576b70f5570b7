"""The folder that the site is built from: the pages of docs/, those made from cards and code, and the order of all."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from instar import catalogue
from instar.bench import claims
from instar.cards import Card, ProblemCard
from instar.errors import DataError
from instar.report import ledger
from instar.shelf import feed, listed
from instar.shelf import page as papers
from instar.site import domains, judged, links, methods, problems, reference, text

Nav = list[dict[str, Any]]
PAPERS = "papers.html"
_PLACES = {"start": "Start", "claims": "What holds", "contributing": "Contributing"}
"""Pages of docs/ that are no how-to."""


def write(root: Path, out: Path) -> None:
    """Write the pages of the checkout at `root`, and the settings of zensical, into the empty folder `out`.

    Raises DataError where `root` is no checkout, or where a page links to nothing.
    """
    if not (root / "docs").is_dir():
        raise DataError(f"{root} has no folder docs/: the site is made from a checkout, not from the package alone.")
    pages = out / "pages"
    before, after = _brought(root.resolve(), pages)
    nav = [*before, *_made(root, pages), *after]
    for name in ("site.css", "iframe-worker.js"):
        _put(pages / name, _own(name))
    _put(out / "zensical.toml", _own("zensical.toml").replace("nav = []", f"nav = {_toml(nav)}"))


def _brought(root: Path, pages: Path) -> tuple[Nav, Nav]:
    """The pages that people wrote, with the README as the first: those before the generated ones, and those after."""
    docs = root / "docs"
    names = {path: path.relative_to(docs).as_posix() for path in sorted([*docs.rglob("*.md"), *docs.rglob("*.png")])}
    names[root / "README.md"] = "index.md"
    if (root / "CONTRIBUTING.md").exists():
        names[root / "CONTRIBUTING.md"] = "contributing.md"
    titles: dict[str, str] = {}
    for path, name in names.items():
        if path.suffix == ".md":
            page = links.moved(path, root, names)
            titles[name] = links.title(page)
            _put(pages / name, page)
        else:
            _put(pages / name, path.read_bytes())
    return _order(titles, [names[path] for path in links.mentioned(root / "README.md") if path in names])


def _order(titles: dict[str, str], mentioned: list[str]) -> tuple[Nav, Nav]:
    """Start, concepts by clock, how-tos as the README mentions them; and what holds, contributing."""
    clocks = [text.file(clock.id.replace(" ", "-")) for clock in listed.clocks()]

    def rank(order: list[str], name: str) -> tuple[int, str]:
        return (order.index(name) if name in order else len(order), name)

    concepts = sorted((n for n in titles if n.startswith("concepts/")), key=lambda n: rank(clocks, Path(n).stem))
    single = {stem: f"{stem}.md" for stem in _PLACES if f"{stem}.md" in titles}
    others = [n for n in titles if n not in (*concepts, *single.values(), "index.md")]
    nav: Nav = [{"Start": ["index.md", *([single["start"]] if "start" in single else [])]}]
    nav += [{"Concepts": [{titles[n]: n} for n in concepts]}] if concepts else []
    nav += [{"How to": [{titles[n]: n} for n in sorted(others, key=lambda n: rank(mentioned, n))]}]
    return nav, [{_PLACES[stem]: name} for stem, name in single.items() if stem != "start"]


def _made(root: Path, pages: Path) -> Nav:
    """The pages made from cards, code and records."""
    cards, known = list(catalogue.methods().values()), list(catalogue.problems().values())
    judgements = claims.judge_all(claims.select(), root / "results")
    for card in cards:
        _put(pages / "methods" / f"{text.file(card.slug)}.md", methods.page(card, judgements))
    _put(pages / "methods" / "index.md", methods.index(cards, judgements))
    for problem in known:
        _put(pages / "problems" / f"{text.file(problem.slug)}.md", problems.page(problem, judgements))
    _put(pages / "problems" / "index.md", problems.index(known))
    _put(pages / "domains.md", domains.page(judgements, root / "results"))
    modules = reference.modules(path.read_text("utf-8") for path in pages.glob("**/*.md"))
    for name, page in reference.pages(modules):
        _put(pages / "api" / f"{name}.md", page)
    _put(pages / "api" / "index.md", reference.index(modules))
    _put(pages / PAPERS, papers.render(judgements))
    _put(pages / "feed.xml", feed.atom(judgements, root / "results"))
    ledger.insert(pages / "claims.md", judged.rows(judgements, lambda slug: methods.name(slug, "methods/")))
    by_clock = {clock: [*itertools.chain(*families.values())] for clock, families in methods.by_clock(cards).items()}
    return [
        {
            "Methods": [
                "methods/index.md",
                {"All papers": PAPERS},
                *({text.plain(clock): _entries("methods", some)} for clock, some in by_clock.items()),
            ]
        },
        {"Problems": ["problems/index.md", {"By domain": "domains.md"}, *_entries("problems", known)]},
        {"API": ["api/index.md", *({name: f"api/{name}.md"} for name in modules if name.count(".") == 1)]},
    ]


def _entries(folder: str, cards: Sequence[Card | ProblemCard]) -> Nav:
    return [{text.plain(card.slug): f"{folder}/{text.file(card.slug)}.md"} for card in cards]


def _put(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())  # `instar.files` syncs each file, for records


def _own(name: str) -> str:
    return resources.files("instar.site").joinpath(name).read_text("utf-8")


def _toml(value: Any) -> str:
    """Lists and tables of one key in TOML, whose strings are JSON's."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_toml(key)} = {_toml(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)
