"""The columns of the score card and the text of its cells: the same for the page, the terminal and the downloads."""

from __future__ import annotations

from dataclasses import dataclass

from instar.bench.summary import Cell, Group, Row
from instar.cards import Metric
from instar.report import units
from instar.report.scaling import condition, families

KINDS = {"quality": "Quality", "cost": "Deterministic costs", "time": "Times on this machine"}
_MOST = 4
"""Conditions that are no points on a scale and are all shown."""
GLYPHS = {"better": "▲", "worse": "▼", "equal within the margin": "=", "equal": "=", "undecided": "?", "": ""}


@dataclass(frozen=True)
class Text:
    """A cell in words. `value` is empty when the figure is missing; then `reason` says why."""

    value: str = ""
    spread: str = ""
    against: str = ""
    verdict: str = ""
    detail: str = ""
    reason: str = ""
    busy: bool = False

    @property
    def glyph(self) -> str:
        return GLYPHS.get(self.verdict, "")


def shown(group: Group, everything: bool = False) -> list[Metric]:
    """The columns, by kind: of a metric along a scale, or of many conditions, only the primary and the last that was measured."""
    present = {name for row in group.rows for name in row.cells}
    primary = group.card.primary
    chosen: list[Metric] = []
    for family in families(group.metrics):
        members = [m for m in family.members if m.id in present]
        if not everything and (len(members) > _MOST or any(m.over for m in members)):
            members = [m for m in members if m.id == primary or m is members[-1]]
        chosen += members
    if primary not in present and any(not row.runs and row.failures for row in group.rows):
        chosen.insert(0, group.card.metric(primary))  # nothing was measured, and that has to be seen
    order = list(KINDS)
    return sorted(chosen, key=lambda m: (order.index(m.kind), m.id != primary))


def header(group: Group, metric: Metric) -> str:
    """The title of a column, with its condition where several metrics have the same title, and its floor where there is one."""
    same = sum(other.title == metric.title for other in group.metrics)
    title = units.sentence(metric.title if same == 1 else f"{metric.title} @ {condition(metric)}")
    floor = group.floors.get(metric.id)
    return f"{title} (floor {units.number(floor.value)})" if floor else title


def floors(group: Group) -> list[str]:
    """What the floors are, a sentence each."""
    return [
        f"The floor of {group.card.metric(name).title} is {units.number(floor.value)}: {floor.what}. Who stays there has learnt "
        "nothing of what is asked."
        for name, floor in group.floors.items()
    ]


def text(group: Group, row: Row, metric: Metric) -> Text:
    """One cell."""
    cell = row.cells.get(metric.id)
    if cell is None:
        return Text(reason=why_missing(group, row, metric))
    value, spread = units.estimate(cell.value, metric.unit, spread=metric.kind == "time")
    base = group.baseline
    against, detail = difference(cell, metric, base.address if base else "")
    return Text(value, spread, against, cell.verdict, detail, busy=cell.busy)


def difference(cell: Cell, metric: Metric, base: str) -> tuple[str, str]:
    """The distance from the baseline: short ("−0.031" or "0.42×") and in words."""
    found = cell.difference
    if found is None:
        return "", ""
    word = f"{', '.join(filter(None, (cell.verdict, cell.reason)))}: " if cell.verdict else ""
    if metric.kind == "quality":
        short = units.signed(found.value, metric.unit, found.low, found.high)
        if found.interval is None:
            return short, f"{short} against {base}; {cell.reason or 'too few seeds for an interval'}"
        return short, f"{word}{short} against {base} (95 % interval {units.interval(*found.interval, metric.unit, found.value)})"
    if cell.verdict == "equal":
        return "the same", f"the same as {base}"
    short = units.times(found.value)
    around = (
        "" if found.interval is None or found.low == found.high else f" ({' … '.join(units.times(v) for v in found.interval)})"
    )
    return short, f"{word}{short} of {base}{around}"


def why_missing(group: Group, row: Row, metric: Metric) -> str:
    """Why a figure is not there."""
    if metric.kind == "time":
        if group.timing is None:
            return "no timing pass among the records"
        return "not in the timing pass" if row.address not in group.timing["times"] else "not measured by the timing pass"
    if not row.runs and row.failures:
        count = len(row.failures)
        ways = dict.fromkeys(text.split(": ")[1] for text in row.failures)
        return f"{'the run' if count == 1 else f'all {count} runs'} failed ({', '.join(ways)})"
    if not row.runs:
        return "no run"
    return "not reported by the runs"
