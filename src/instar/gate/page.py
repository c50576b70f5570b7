"""The page of a judgement: the answer, why, and what broke, in one file that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from instar.gate import drawing, shown
from instar.gate.result import Broken, Figure, Result, Slice
from instar.gate.shown import Folded
from instar.report import plots, shell, units

_REASONS = 6
_OPEN_GROUPS = 3
_FIRST_ITEMS = 10
_TEXT = 4000
_ALL_TEXT = 4_000_000
"""Characters of items that a page holds, so that thousands of long ones still open at once."""


@dataclass(frozen=True)
class Strip:
    """An interval as a bar inside a cell, in percent of its width."""

    left: float
    width: float
    at: float


@dataclass(frozen=True)
class Item:
    """A broken item as it is printed."""

    id: str
    input: Folded | None
    label: Folded | None
    """None also where the old answer is the label."""
    before: Folded
    after: Folded
    drop: str
    always: bool


@dataclass(frozen=True)
class Section:
    """A group of broken items: the first ones are open to see, the rest behind a fold."""

    title: str
    size: int
    first: list[Item]
    rest: list[Item]
    unshown: int
    open: bool


def render(result: Result) -> str:
    """The page as text. Everything from the record is cleaned and escaped; the same record gives the same bytes."""
    return shell.page(
        "gate.html",
        styles=("gate.css",),
        scripts=("gate.js",),
        r=result,
        word=shown.WORDS[result.decision],
        headline=shown.headline(result),
        reasons=[shown.line(text, 500) for text in result.reasons[:_REASONS]],
        more_reasons=max(0, len(result.reasons) - _REASONS),
        picture=drawing.decision(result),
        tests=_tests(result),
        sides=shown.sides(result),
        flows=shown.flows(result),
        measures=shown.measures(result),
        noise=shown.noise(result),
        moved=shown.moved(result),
        always=shown.always(result),
        groups=_groups(result),
        ids=_ids(result),
        slices=[(s, strip) for s, strip in zip(result.slices, _strips(result), strict=True)],
        overall=_overall(result),
        facts=_facts(result),
        signs=shown.SIGNS,
        line=shown.line,
        figure=shown.figure,
        mean=lambda mark: shown.figure(Figure(mark), "share" if result.binary else "score")[0],
        probability=shown.probability,
        number=units.number,
        sentence=units.sentence,
    )


def _tests(result: Result) -> list[dict[str, Any]]:
    """Every test, the failed ones first."""
    return [
        {
            "decision": test.decision,
            "scope": shown.line(test.scope, 80),
            "asked": shown.asked(test, result),
            "found": shown.figure(test.figure, shown.unit(test, result.binary)),
            "items": test.items,
            "needed": test.needed,
            "p": None if test.p is None else shown.probability(test.p),
        }
        for test in sorted(result.tests, key=lambda t: shown.ORDER[t.decision])
    ]


def _groups(result: Result) -> list[Section]:
    count = sum(len(group.items) for group in result.broken)
    longest = max(200, min(_TEXT, _ALL_TEXT // (4 * max(1, count))))
    found = []
    for place, group in enumerate(result.broken):
        items = [_item(item, result, longest) for item in group.items]
        found.append(
            Section(
                shown.line(group.title, 120),
                group.size,
                items[:_FIRST_ITEMS],
                items[_FIRST_ITEMS:],
                group.size - len(items),
                place < _OPEN_GROUPS,
            )
        )
    return found


def _item(item: Broken, result: Result, longest: int) -> Item:
    def fold(text: str | None) -> Folded | None:
        return None if text is None else shown.folded(text, longest)

    return Item(
        id=shown.line(item.id, 80),
        input=fold(item.input),
        label=None if item.label == item.before and result.binary else fold(item.label),
        before=shown.folded(item.before, longest),
        after=shown.folded(item.after, longest),
        drop="" if result.binary else units.number(item.drop, 3),
        always=item.always,
    )


def _ids(result: Result) -> str:
    """Every broken id as a file, so that nothing that the page cuts is lost."""
    text = "".join(f"{shown.line(name, 1000)}\n" for name in result.broken_ids)
    return plots.data_uri("text/plain", text.encode()) if result.broken_ids else ""


def _reach(result: Result) -> float:
    """The right end of the strips of all slices."""
    return max((s.nfr.high if s.nfr.high is not None else s.nfr.value for s in result.slices), default=0.0) or 1.0


def _strips(result: Result) -> list[Strip]:
    reach = _reach(result)

    def strip(one: Slice) -> Strip:
        low = one.nfr.value if one.nfr.low is None else one.nfr.low
        high = one.nfr.value if one.nfr.high is None else one.nfr.high
        return Strip(*(round(100 * v / reach, 2) for v in (low, high - low, one.nfr.value)))

    return [strip(one) for one in result.slices]


def _overall(result: Result) -> tuple[Figure, float] | None:
    """The negative flips of all items, and where they stand on the strips."""
    found = next((m.figure for m in result.measures if m.id == "nfr"), None)
    return None if found is None else (found, min(100.0, round(100 * found.value / _reach(result), 2)))


def _facts(result: Result) -> list[tuple[str, list[tuple[str, str]]]]:
    """What is needed to redo it: (heading, rows)."""
    compared = [
        ("task", shown.fact("", result.task)),
        ("metric", shown.fact("", result.metric)),
        ("chosen because", shown.fact("", result.chosen or "it was given")),
        ("items", f"{units.number(result.items)}, of which {units.number(result.missing)} without an answer"),
        ("blocks", "each item its own" if result.blocks is None else units.number(result.blocks)),
        ("level of the intervals", f"{result.level * 100:g} %"),
        *([] if result.binary else [("tolerance", units.number(result.tolerance))]),
        ("repeated runs", shown.fact("", result.floor_runs)),
        *([("started", shown.fact("", result.started))] if result.started else []),
        ("took", units.quantity(result.seconds, "s")),
    ]
    parts: list[tuple[str, Mapping[str, Any]]] = [
        ("Policy", result.policy),
        (f"Old version: {shown.line(result.old.name, 80)}", result.old.facts),
        (f"New version: {shown.line(result.new.name, 80)}", result.new.facts),
        ("Environment", result.environment),
    ]
    rest = [(title, [(shown.line(k.replace("_", " "), 60), shown.fact(k, v)) for k, v in part.items()]) for title, part in parts]
    return [("What was compared", compared), *(part for part in rest if part[1])]
