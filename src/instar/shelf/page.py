"""The page that people browse: every paper and method, newest first, with what holds; one file that needs nothing else."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from instar.bench.claims import Judgement
from instar.cards import Card
from instar.report import shell, units
from instar.shelf import listed, needing, views
from instar.shelf.entries import Entry, entries

_MARKS = {"holds": "better", "does not hold here": "worse"}


@dataclass(frozen=True)
class Shown:
    """An entry as the template prints it."""

    entry: Entry
    anchor: str
    status: str
    verdicts: list[tuple[str, str, int]]
    """(verdict, colour, how many), without those that are 0."""
    claims: list[dict[str, str]]
    clock: str
    domains: str
    tasks: str
    runs: str
    """What the filters compare."""


def render(judgements: Sequence[Judgement]) -> str:
    """The page as text. The same cards and records give the same bytes; whatever it prints is escaped by the template."""
    every = entries()
    shown = [_show(entry, judgements) for entry in every]
    clocks, domains = views.by_clock(every), views.by_domain(every, judgements)
    tasks = views.by_task(every)
    papers = [one for one in shown if one.entry.listed]
    text = shell.page(
        "catalogue.html",
        styles=["catalogue.css"],
        scripts=["find.js", "catalogue.js"],
        papers=papers,
        others=[one for one in shown if not one.entry.listed],
        running=sum(one.entry.runs for one in papers),
        counts=_counts(judgements),
        clocks=clocks,
        domains=domains,
        tasks=tasks,
        gaps=[*views.gaps(clocks), *views.gaps([d for d in domains if d.title != "any domain"])],
        unserved=[group.title for group in tasks if not group.papers and not group.others],
        clock_names=[group.title for group in clocks],
        domain_names=[(domain.id, domain.title) for domain in listed.domains() if domain.id != "any"],
        anchor=anchor,
        needs=needing.table(every),
        answers=[{"to": anchor(e), "title": e.title, "line": e.line, "status": _status(e)} for e in every],
    )
    return text.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate in a record has no form in UTF-8


def anchor(entry: Entry) -> str:
    """The place of an entry on the page."""
    return "e-" + re.sub(r"[^A-Za-z0-9]+", "-", entry.id)


def _show(entry: Entry, judgements: Sequence[Judgement]) -> Shown:
    mine = {card.slug for card in _own(entry)}
    found = [j for j in judgements if j.method in mine]
    return Shown(
        entry=entry,
        anchor=anchor(entry),
        status=_status(entry),
        verdicts=_counts(found),
        claims=[_claim(j) for j in sorted(found, key=lambda j: views.ORDER.index(j.verdict))],
        clock=entry.clock,
        domains="|".join(entry.domains),
        tasks="|".join(entry.tasks),
        runs="yes" if entry.runs else "no",
    )


def _own(entry: Entry) -> tuple[Card, ...]:
    """The methods whose claims stand with this entry: a survey's stand with the methods themselves."""
    return () if entry.kind == "survey" else entry.methods


def _status(entry: Entry) -> str:
    if not entry.runs:
        return "not built"
    if entry.absent:
        return f"{len(entry.methods) + len(entry.problems)} of {_named(entry)} named parts run here"
    return "runs here"


def _named(entry: Entry) -> int:
    return len(entry.methods) + len(entry.problems) + len(entry.absent)


def _counts(judgements: Sequence[Judgement]) -> list[tuple[str, str, int]]:
    often: Counter[str] = Counter(j.verdict for j in judgements)
    return [(verdict, _MARKS.get(verdict, ""), often[verdict]) for verdict in views.ORDER if often[verdict]]


def _claim(judgement: Judgement) -> dict[str, Any]:
    low, high = judgement.interval or (None, None)
    around = "" if low is None or high is None else f" [{units.number(low)}, {units.number(high)}]"
    return {
        "text": judgement.text,
        "verdict": judgement.verdict,
        "mark": _MARKS.get(judgement.verdict, ""),
        "found": "" if judgement.value is None else f"{units.number(judgement.value)}{around}",
        "from": f"{judgement.seeds} {judgement.drawn_from}" if judgement.drawn_from not in ("", "closed form") else "",
        "reason": judgement.reason or "",
        "command": judgement.command,
    }
