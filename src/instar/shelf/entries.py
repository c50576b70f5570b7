"""What stands on the shelf: every paper with the methods that run of it, and every other method of the catalogue."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from instar import catalogue
from instar.cards import Card, Kind, ProblemCard
from instar.shelf import listed


@dataclass(frozen=True)
class Entry:
    """A paper or a method, with what of it runs."""

    id: str
    """The slug; with the arXiv id behind it where papers share a slug."""
    title: str
    line: str
    kind: Kind
    published: str
    """Year and month; empty where nothing says so."""
    clock: str
    domains: list[str]
    tasks: list[str]
    arxiv: str | None
    listed: bool
    """Whether it is one of the papers behind the library."""
    methods: tuple[Card, ...]
    """The paper's own methods; of a survey, those that it speaks of; of a method, itself."""
    needs: tuple[str, ...] = ()
    words: str = ""
    beside: tuple[Card, ...] = ()
    """Baselines that stand beside it."""
    problems: tuple[ProblemCard, ...] = ()
    absent: tuple[str, ...] = ()
    """What a survey names that is not here."""

    @cached_property
    def runs(self) -> bool:
        """Whether anything of it runs here."""
        return bool(self.methods or self.problems)


def entries() -> list[Entry]:
    """Papers and methods, newest first; what has no date comes last. Follows the catalogue as it is now."""
    cards = list(catalogue.methods().values())
    papers = listed.papers()
    often = Counter(paper.slug for paper in papers)
    found = [_paper(paper, cards, f"{paper.slug}:{paper.arxiv}" if often[paper.slug] > 1 else paper.slug) for paper in papers]
    owned = {card.slug for entry in found for card in entry.methods if entry.kind == "system"}
    found += [_method(card) for card in cards if card.slug not in owned]
    return sorted(sorted(found, key=lambda e: e.id), key=lambda e: (e.listed, e.published, e.arxiv or ""), reverse=True)


def own(paper: listed.ListedPaper, cards: Sequence[Card]) -> list[Card]:
    """The methods that are this paper's: those of its arXiv number, and one of its name."""
    return [c for c in cards if c.slug == paper.slug or (c.paper is not None and c.paper.arxiv == paper.arxiv)]


def _paper(paper: listed.ListedPaper, cards: Sequence[Card], name: str) -> Entry:
    known, problems = {card.slug: card for card in cards}, catalogue.problems()
    mine = own(paper, cards)
    mine += [known[slug] for slug in paper.methods if slug in known and known[slug] not in mine]
    return Entry(
        id=name,
        title=paper.title,
        line=paper.line,
        kind=paper.kind,
        published=paper.published,
        clock=paper.clock,
        domains=paper.domains,
        tasks=paper.tasks,
        arxiv=paper.arxiv,
        listed=True,
        methods=tuple(mine),
        needs=tuple(paper.needs),
        words=paper.words,
        beside=tuple(card for card in cards if card.system == paper.slug and card not in mine),
        problems=tuple(problems[slug] for slug in paper.problems if slug in problems),
        absent=(*(s for s in paper.methods if s not in known), *(s for s in paper.problems if s not in problems)),
    )


def _method(card: Card) -> Entry:
    return Entry(
        id=card.slug,
        title=card.title,
        line=card.idea,
        kind=card.kind,
        published=card.paper.published[:7] if card.paper else "",
        clock=listed.clock_of(card.family),
        domains=listed.domains_of(card.domains),
        tasks=card.tasks,
        arxiv=card.paper.arxiv if card.paper else None,
        listed=False,
        methods=(card,),
    )
