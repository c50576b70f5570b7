"""The answer of a suite: what may be used for each class of task, what each method costs at the length asked for, and why."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from instar import files
from instar.bench.curves import FIGURES, slope
from instar.bench.suite import Findings
from instar.bench.suites import Part
from instar.cards import Metric
from instar.report import advice, columns, figures, scaling, shell, units
from instar.report.plots import Plot, Styles

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Answer:
    """Everything that page and terminal say."""

    found: Findings
    verdicts: list[advice.Verdict]
    misled: list[advice.Misled]
    tasks: dict[str, str]
    """Class of tasks -> which methods stand for it, in one sentence."""
    missing: list[str]
    """Parts of the question that have no records yet."""


def answer(found: Findings) -> Answer:
    """The answer of what was measured."""
    verdicts = advice.verdicts(found)
    tasks: dict[str, list[Part]] = {}
    for part in found.parts:
        tasks.setdefault(part.task, []).append(part)
    asked = found.suite.chosen(causal=found.question.causal, how=found.question.how)
    missing = [part for part in asked if part.id not in found.groups]
    said = {
        task: _of_task(found, members, verdicts, [part.title for part in missing if part.task == task])
        for task, members in tasks.items()
    }
    return Answer(found, verdicts, advice.misled(found), said, [part.title for part in missing])


def limits(found: Findings) -> str:
    """The question in words."""
    q = found.question
    words = [
        f"{units.number(q.length, 6)} tokens",
        f"{q.layers} layers of width {q.width}",
        "causal" if q.causal else "two-sided",
    ]
    words += [f"at most {units.quantity(q.memory, 'B')}"] if q.memory < float("inf") else ["any memory"]
    words += [f"at most {units.quantity(q.latency, 's')}"] if q.latency < float("inf") else ["any latency"]
    return ", ".join([*words, "trained from scratch" if q.how == "scratch" else "swapped into a trained model"])


def table(said: Answer) -> Table:
    """A method a line, a part a column."""
    from rich import box
    from rich.table import Table

    parts = said.found.parts
    result = Table(title=limits(said.found), box=box.SIMPLE_HEAD, title_justify="left")
    for head in ("", *("\n".join([p.title, f"({p.task})", *_floor(said.found, p)]) for p in parts), "reading", "state"):
        result.add_column(head, justify="left" if head == "" else "right")
    for verdict in said.verdicts:
        cells = [_cell(said.found, part, verdict.address) for part in parts]
        texts = ["" if c is None else " ".join(t for t in (c.value, c.glyph) if t) or "missing" for c in cells]
        result.add_row(f"{verdict.address}{' (ruled out)' if verdict.out else ''}", *texts, *_costs(said.found, verdict.address))
    return result


def sentences(said: Answer) -> list[str]:
    """The answer, line by line."""
    lines = [f"For {task} tasks: {text}" for task, text in said.tasks.items()]
    lines += [f"Perplexity alone would mislead: {one.text}" for one in said.misled]
    lines += [f"Not measured yet: {', '.join(said.missing)}."] if said.missing else []
    for verdict in said.verdicts:
        lines += [f"{verdict.address}: {one.text}" for one in verdict.said]
    return lines


def write(said: Answer, path: Path) -> None:
    """The page. Raises OutputError."""
    found = said.found
    styles = Styles.of([curve.address for curve in found.curves])
    lines = [
        {
            "address": v.address,
            "slot": styles.slot(v.address),
            "out": v.out,
            "cells": [_cell(found, part, v.address) for part in found.parts],
            "costs": _costs(found, v.address),
            "said": v.said,
        }
        for v in said.verdicts
    ]
    files.write(
        path,
        shell.page(
            "suite.html", suite=found.suite, limits=limits(found), parts=[(p, _floor(found, p)) for p in found.parts],
            baseline=found.baseline, lines=lines, tasks=said.tasks, misled=said.misled,
            missing=said.missing, plots=_plots(found, styles), crossings=_crossings(found),
        ),
    )  # fmt: skip


def _of_task(found: Findings, parts: list[Part], verdicts: list[advice.Verdict], missing: list[str]) -> str:
    """Which of those that no rule excludes are shown to be no worse than the baseline at every part of a class of tasks.

    Where a part has no difference, as after runs that failed, nothing is shown. missing: parts without records.
    """
    base = found.baseline
    good, lists = [], {"undecided": list[str](), "worse": list[str](), "ruled out": list[str]()}
    for verdict in verdicts:
        if verdict.address == base:
            continue
        cells = [advice.cell_of(found, part, verdict.address) for part in parts]
        words = {"undecided" if cell is None else cell.verdict for cell in cells}
        if verdict.out:
            lists["ruled out"].append(verdict.address)
        elif "worse" in words:
            lists["worse"].append(verdict.address)
        elif all(cell is not None and advice.no_worse(part, cell) for part, cell in zip(parts, cells, strict=True)):
            good.append(verdict.address)
        else:
            lists["undecided"].append(verdict.address)
    text = (
        f"no worse than {base}: {', '.join(good)}"
        if good
        else f"of what is not ruled out, nothing is shown to be as good as {base}"
    )
    if missing:
        text = f"by {', '.join(part.title for part in parts)} alone, {text}"
    lists["not measured"] = missing
    lists["failed runs"] = [
        f"{len(row.failures)} of {row.address} at {part.title}"
        for part in parts
        for row in found.groups[part.id].rows
        if row.failures
    ]
    return "; ".join([text, *(f"{word}: {', '.join(names)}" for word, names in lists.items() if names)]) + "."


def _floor(found: Findings, part: Part) -> list[str]:
    """`floor 0.259`, if its problem states one."""
    floor = found.groups[part.id].floors.get(part.metric.id)
    return [f"floor {units.number(floor.value)}"] if floor else []


def _cell(found: Findings, part: Part, address: str) -> columns.Text | None:
    group = found.groups[part.id]
    row = next((row for row in group.rows if row.address == address), None)
    return columns.text(group, row, part.metric) if row else None


def _costs(found: Findings, address: str) -> list[str]:
    """Reading and state at the length of the question, all layers; what is read at once leaves no state."""
    curve = next(c for c in found.curves if c.address == address)
    at = dict(curve.points.get(found.question.length, {}))
    if not found.question.causal:
        at.pop("state_bytes", None)
    named = (("forward_seconds", "s"), ("state_bytes", "B"))
    return [units.quantity(found.question.layers * at[name], unit) if name in at else "none" for name, unit in named]


def _figures(found: Findings) -> dict[str, Metric]:
    """What is drawn: of state and next tokens nothing, where all is read at once."""
    return {name: m for name, m in FIGURES.items() if found.question.causal or m.over != "context length"}


def _plots(found: Findings, styles: Styles) -> list[Plot]:
    drawn = []
    for name, metric in _figures(found).items():
        lines = {curve.address: curve.line(name) for curve in found.curves}
        if any(len(points) > 1 for points in lines.values()):
            title = units.sentence(metric.title)
            drawn.append(figures.against_length(lines, found.baseline, metric, title, styles, f"costs-{name}"))
    return drawn


def _crossings(found: Findings) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """By figure: (method, slope, how it lies against the baseline)."""
    base = next((c for c in found.curves if c.address == found.baseline), None)
    result = []
    for name, metric in _figures(found).items():
        rows = []
        for curve in found.curves:
            steep = slope(curve, name)
            if steep is None:
                continue
            where = scaling.crossing(curve.line(name), base.line(name)) if base and base is not curve else None
            word = scaling.in_words(where, metric.over or "", base.address) if where and base else ""
            rows.append((curve.address, f"{round(steep, 2) + 0.0:.2f}", word))
        if rows:
            result.append((units.sentence(metric.title), rows))
    return result
