"""The page of a report on a change of encoder: the answer, what each effort buys, and why to believe it, in one offline file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from instar.gate.shown import Folded, fact, folded, line
from instar.report import shell, units
from instar.report.plots import Styles
from instar.upgrade import drawing, shown
from instar.upgrade.result import Arm, Point, Report

_SENTENCE = 600
_MOST_EXAMPLES = 30
_TEXT = 2000
_STAGES = ("Now", "Half re-encoded", "All re-encoded")


@dataclass(frozen=True)
class Strip:
    """An interval as a bar inside a cell, in percent of its width."""

    left: float
    width: float
    at: float


@dataclass(frozen=True)
class Cell:
    """An arm at one stage, as it is printed."""

    order: float
    """What a table sorts by."""
    value: str
    interval: str
    held_out: str
    against: str
    verdict: str
    ap: str
    strip: Strip


@dataclass(frozen=True)
class Row:
    """An arm in the table."""

    id: str
    title: str
    idea: str
    slot: int | None
    """Colour of its line; None where it has none."""
    recommended: bool
    cells: list[Cell | None]
    costs: list[tuple[float | None, str]]
    """What a table sorts by, and what it prints."""
    merged: str


@dataclass(frozen=True)
class Found:
    """A document of an example, and whether it is one of the relevant ones."""

    text: Folded
    right: bool


@dataclass(frozen=True)
class Example:
    """A query with the first documents of three searches."""

    query: Folded
    becomes: str
    """right, wrong, or nothing where the record does not say."""
    relevant: list[Folded]
    lists: list[tuple[str, list[Found]]]


def render(report: Report) -> str:
    """The page as text. Everything from the record is cleaned and escaped; the same record gives the same bytes."""
    drawn = shown.drawn(report)
    styles = Styles.of([a.id for a in drawn])
    recommended = set(shown.recommended(report))
    return shell.page(
        "encoder.html",
        styles=("gate.css", "encoder.css"),
        scripts=("encoder.js",),
        r=report,
        headline=_sentence(report.headline),
        advice=[_sentence(text) for text in report.advice],
        cautions=[_sentence(text) for text in report.cautions],
        tiles=_tiles(report),
        choices=_choices(report),
        during=_sentence(shown.during(report)),
        whole_way="" if report.during is None else report.during.arm,
        picture=drawing.backfill(report),
        behind=_behind(drawn),
        stages=_STAGES,
        rows=[_row(arm, styles, arm.id in recommended) for arm in shown.ran(report)],
        level_at=_level(report),
        lacking=[a for a in report.arms if not a.curve],
        check=shown.check(report.check),
        examples=_examples(report),
        likeness=shown.likeness(report),
        facts=_facts(report),
        truth=shown.TRUTH[report.truth],
        scope=line(shown.scope(report), 300),
        line=line,
        share=shown.share,
        number=units.number,
        sentence=units.sentence,
    )


def _sentence(text: str) -> str:
    """A sentence of the record; no line breaks between a number and its sign of percent."""
    return line(text, _SENTENCE).replace(" %", "\u00a0%")


def _tiles(report: Report) -> list[tuple[str, str, str]]:
    """The figures to remember: (title, value, what surrounds it)."""
    found = []
    for title, side in (("Search as it is now", report.old), ("Everything re-encoded", report.new)):
        value, interval = shown.figure(side.own_recall)
        found.append((title, value, f"recall@{report.k}" + (f", {interval}" if interval else "")))
    rows = units.number(report.rows)
    found.append(("Time to re-encode all", shown.hours(report.hours_full), f"{rows} rows"))
    found.append(("Stored vectors", f"{shown.size(report.bytes_old)} → {shown.size(report.bytes_new)}", f"{rows} rows"))
    return found


def _choices(report: Report) -> list[dict[str, Any]]:
    found = []
    for choice in report.choices:
        size = shown.bytes_of(report, choice)
        found.append(
            {
                "share": {0.0: "nothing", 1.0: "all"}.get(choice.fraction, shown.share(choice.fraction)),
                "hours": shown.hours(choice.hours) if choice.hours else "",
                "words": line(units.sentence(choice.words), 300),
                "recall": shown.figure(choice.recall),
                "held_out": shown.realised(choice.recall),
                "bytes": "unknown" if size is None else shown.size(size),
                "sure": choice.sure,
            }
        )
    return found


def _behind(arms: list[Arm]) -> tuple[list[str], list[tuple[str, list[tuple[str, str]]]]]:
    """The picture as a table: heads, and (share, a cell an arm)."""
    fractions = sorted({p.fraction for a in arms for p in a.curve})

    def cell(point: Point | None) -> tuple[str, str]:
        return ("–", "") if point is None else (shown.around(point.recall), shown.realised(point.recall))

    return [line(shown.called(a), 60) for a in arms], [(shown.share(f), [cell(shown.at(a, f)) for a in arms]) for f in fractions]


def _row(arm: Arm, styles: Styles, recommended: bool) -> Row:
    last = arm.curve[-1]
    merged = shown.FUSION.get(arm.fusion, line(arm.fusion, 40))
    if last.fraction == 0:
        all_hours, merged = "nothing to encode", "–"
    else:
        all_hours = shown.hours(last.hours)
    return Row(
        id=line(arm.id, 60),
        title=line(shown.called(arm), 80),
        idea=line(arm.idea, 300),
        slot=styles.slot(arm.id) if arm.id in styles.index else None,
        recommended=recommended,
        cells=[None if point is None else _cell(point) for point in shown.stages(arm)],
        costs=[
            (arm.fit_seconds, shown.seconds(arm.fit_seconds)),
            (arm.query_seconds, shown.seconds(arm.query_seconds)),
            (last.hours, all_hours),
            (last.bytes, shown.size(last.bytes)),
        ],
        merged=merged if arm.order == "random" else f"{merged}; re-encoded in order: {line(arm.order, 60)}",
    )


def _cell(point: Point) -> Cell:
    value, interval = shown.figure(point.recall)
    low = point.recall.value if point.recall.low is None else point.recall.low
    high = point.recall.value if point.recall.high is None else point.recall.high
    left, right, at = (round(100 * min(1.0, max(0.0, v)), 2) for v in (low, high, point.recall.value))
    return Cell(
        order=point.recall.value,
        value=value,
        interval=interval,
        held_out=shown.realised(point.recall),
        against=shown.difference(point.against_old),
        verdict=shown.verdict(point.against_old),
        ap=shown.around(point.ap),
        strip=Strip(left, round(right - left, 2), at),
    )


def _level(report: Report) -> float:
    """Where the search as it is now stands on the strips."""
    return round(100 * report.old.own_recall.value, 2)


def _examples(report: Report) -> list[Example]:
    """Queries with what three searches find first; the middle one only where it is not the first."""
    found = []
    for one in report.examples[:_MOST_EXAMPLES]:
        relevant, old, arm, new = (shown.texts(one.get(key)) for key in ("relevant", "old", "arm", "new"))
        lists = [("Now", old), *([("As recommended, nothing re-encoded", arm)] if arm != old else []), ("All re-encoded", new)]
        found.append(
            Example(
                query=_short(str(one.get("query", ""))),
                becomes=one["becomes"] if one.get("becomes") in ("right", "wrong") else "",
                relevant=[_short(text) for text in relevant],
                lists=[(title, [Found(_short(text), text in relevant) for text in texts]) for title, texts in lists],
            )
        )
    return found


def _short(text: str) -> Folded:
    return folded(text, _TEXT, first=180, lines=3)


def _facts(report: Report) -> list[tuple[str, list[tuple[str, str]]]]:
    """What is needed to redo it: (heading, rows)."""
    measured = [
        ("data", line(report.data, 200)),
        ("documents measured", units.number(report.documents)),
        ("rows of the index", units.number(report.rows)),
        ("queries", units.number(report.queries)),
        ("right is", shown.TRUTH[report.truth]),
        ("results looked at (k)", units.number(report.k)),
        ("level of the intervals", f"{report.level * 100:g} %"),
        ("seed", str(report.seed)),
        *([("started", line(report.started, 60))] if report.started else []),
        ("took", f"{shown.seconds(report.seconds)}, of which encoding {shown.seconds(report.seconds_encoding)}"),
    ]
    parts: list[tuple[str, Mapping[str, Any]]] = [
        ("Data and split", report.facts),
        *(
            (f"{word} encoder: {line(side.name, 80)}", {"width": side.dim, "fingerprint": side.fingerprint, **side.facts})
            for word, side in (("Old", report.old), ("New", report.new))
        ),
        ("Environment", report.environment),
    ]
    rest = [(title, [(line(k.replace("_", " "), 60), fact(k, v)) for k, v in part.items()]) for title, part in parts]
    return [("What was measured", measured), *(part for part in rest if part[1])]
