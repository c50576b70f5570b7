"""The papers behind the library and the terms that they are browsed by. Facts only: whether a paper runs is computed."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from instar.cards import Kind, typed

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class ListedPaper:
    """One paper: what it is and what it is for."""

    slug: str
    title: str
    arxiv: str
    published: str
    """Year and month, 2024-06."""
    kind: Kind
    line: str
    """What it does, in one sentence of plain words."""
    clock: str
    domains: list[str]
    tasks: list[str]
    needs: list[str]
    """What people want who should find it."""
    words: str
    """Other words that they may use."""
    methods: list[str] = field(default_factory=list)
    """Of a survey or data set: the methods that there are to run of it, and the problems."""
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Clock:
    """A time scale of updates."""

    id: str
    updates: str
    families: list[str]


@dataclass(frozen=True)
class Domain:
    """A field of application, with the words by which cards name it."""

    id: str
    title: str
    words: list[str]


@dataclass(frozen=True)
class _Papers:
    paper: list[ListedPaper]
    path: Path = field(metadata={"given": True})


@dataclass(frozen=True)
class _Taxonomy:
    clock: list[Clock]
    domain: list[Domain]
    path: Path = field(metadata={"given": True})


@cache
def papers() -> tuple[ListedPaper, ...]:
    """The papers, newest first."""
    found = typed(_HERE / "papers.toml", _Papers).paper
    return tuple(sorted(found, key=lambda paper: (paper.published, paper.arxiv), reverse=True))


@cache
def clocks() -> tuple[Clock, ...]:
    """The time scales, the fastest first."""
    return tuple(typed(_HERE / "taxonomy.toml", _Taxonomy).clock)


@cache
def domains() -> tuple[Domain, ...]:
    """The domains, in the survey's order."""
    return tuple(typed(_HERE / "taxonomy.toml", _Taxonomy).domain)


def clock_of(family: str) -> str:
    """The clock of a family of methods; a family of another package that none lists has its own name."""
    return next((clock.id for clock in clocks() if family in clock.families), family)


def domains_of(words: list[str]) -> list[str]:
    """The domains that a card's words name, each once, in the survey's order; words that none lists are outside."""
    known = {word: domain.id for domain in domains() for word in domain.words}
    named = {known.get(word, "other") for word in words}
    return [domain.id for domain in domains() if domain.id in named]
