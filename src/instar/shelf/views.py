"""The shelf seen by clock, by domain and by task, with what is missing said in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from instar import catalogue
from instar.bench.claims import Judgement
from instar.cards import Card, ProblemCard
from instar.shelf import listed
from instar.shelf.entries import Entry

ORDER = ("holds", "partly", "does not hold here", "undecided", "not run", "not testable at this scale")
"""Verdicts as they are listed."""
UNJUDGED = ORDER[-2:]


@dataclass(frozen=True)
class Group:
    """Entries that share a clock, a domain or a task."""

    title: str
    about: str
    papers: list[Entry]
    """Of the listed papers, those of which something runs."""
    waiting: list[Entry]
    """Of the listed papers, those of which nothing runs."""
    others: list[Entry]
    problems: list[ProblemCard] = field(default_factory=list)
    verdicts: Mapping[str, int] = field(default_factory=dict)
    """Of claims that were judged on these problems."""
    gaps: list[str] = field(default_factory=list)


def by_clock(entries: Sequence[Entry]) -> list[Group]:
    """One group a clock, the fastest first; families of other packages come last."""
    about = {clock.id: clock.updates for clock in listed.clocks()}
    names = list(dict.fromkeys([*about, *(entry.clock for entry in entries)]))
    return [_group(name, about.get(name, ""), [e for e in entries if e.clock == name]) for name in names]


def by_domain(entries: Sequence[Entry], judgements: Sequence[Judgement]) -> list[Group]:
    """One group a domain, with its problems and what was judged on them."""
    problems = list(catalogue.problems().values())
    found = []
    for domain in listed.domains():
        here = [p for p in problems if domain.id in listed.domains_of(p.domains)]
        slugs = {p.slug for p in here}
        judged = [j for j in judgements if j.verdict not in UNJUDGED and j.measure.partition(".")[0] in slugs]
        group = _group(domain.title, "", [e for e in entries if domain.id in e.domains and _works_in(e, domain.id)])
        often = Counter(str(j.verdict) for j in judged)
        verdicts = {verdict: often[verdict] for verdict in ORDER if often[verdict]}
        gaps = list(group.gaps)
        if not here and domain.id != "any":
            gaps.append("No problem here is of this domain, so that nothing is judged in it.")
        elif not judged and here:
            gaps.append("No claim has been judged on its problems.")
        found.append(Group(group.title, "", group.papers, group.waiting, group.others, here, verdicts, gaps))
    return found


def by_task(entries: Sequence[Entry]) -> list[Group]:
    """One group a task that a paper works on or two methods share, those of most entries first."""
    often = Counter(task for entry in entries for task in entry.tasks)
    wanted = {task for entry in entries if entry.listed for task in entry.tasks} | {t for t, n in often.items() if n > 1}
    names = sorted(wanted, key=lambda task: (-often[task], task))
    return [_group(task, "", [e for e in entries if task in e.tasks and _works_on(e, task)]) for task in names]


def _works_in(entry: Entry, domain: str) -> bool:
    """A survey speaks of more than runs of it: it stands in a domain where something of it does."""
    parts: list[Card | ProblemCard] = [*entry.methods, *entry.problems]
    return entry.kind != "survey" or not parts or any(domain in listed.domains_of(part.domains) for part in parts)


def _works_on(entry: Entry, task: str) -> bool:
    """The same for a task."""
    parts: list[Card | ProblemCard] = [*entry.methods, *entry.problems]
    return entry.kind != "survey" or not parts or any(task in part.tasks for part in parts)


def gaps(groups: Sequence[Group]) -> list[str]:
    """Every gap with the name of its group."""
    return [f"{group.title}: {gap[0].lower()}{gap[1:]}" for group in groups for gap in group.gaps]


def _group(title: str, about: str, entries: Sequence[Entry]) -> Group:
    papers = [e for e in entries if e.listed and e.runs]
    waiting = [e for e in entries if e.listed and not e.runs]
    others = [e for e in entries if not e.listed]
    said = []
    if not papers and not others:
        said.append("Nothing of it runs here.")
    elif not papers and waiting:
        said.append("None of its papers runs here; baselines do.")
    return Group(title, about, papers, waiting, others, gaps=said)
