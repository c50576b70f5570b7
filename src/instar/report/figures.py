"""The drawings of a comparison: trade-off, cost against length, learning curves, paired differences, quality by condition."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from instar.bench import record
from instar.bench.summary import Cell, Group, Row
from instar.cards import Metric
from instar.report import labels, scaling, ticks, units
from instar.report.plots import LIGHT, Plot, Styles, draw, label
from instar.report.scaling import Family
from instar.report.table import sheet


def all_plots(group: Group, styles: Styles, prefix: str) -> dict[str, list[Plot]]:
    """The plots of a group by section; a section without data has none."""
    quality = [f for f in scaling.families(group.metrics) if f.first.kind == "quality" and len(f.members) > 1]
    return {
        "tradeoff": [p for kind in ("time", "memory") if (p := tradeoff(group, styles, prefix, kind))],
        "scaling": [cost_against_length(group, styles, prefix, f) for f in scaling.scaled(group)],
        "training": [p for p in (learning(group, styles, prefix), paired(group, styles, prefix)) if p]
        + [p for f in quality if (p := by_condition(group, styles, prefix, f))],
    }


def axis_metric(group: Group, kind: str) -> Metric | None:
    """The time or memory of the trade-off: of the first such cost on the card, the longest condition that was measured.

    Memory that was measured at several lengths (a state) comes before memory that was not.
    """
    for family in sorted(scaling.families(group.metrics), key=lambda f: kind == "memory" and len(f.members) == 1):
        first = family.first
        if (first.kind == "time") if kind == "time" else (first.kind == "cost" and first.unit.startswith(("byte", "B"))):
            members = [m for m in family.members if any(m.id in row.cells for row in group.rows)]
            if members:
                return members[-1]
    return None


def tradeoff(group: Group, styles: Styles, prefix: str, kind: str) -> Plot | None:
    """Quality against a cost: interval crosses, faint seeds, the baseline's cross-hair, the frontier bold."""
    metric, primary = axis_metric(group, kind), group.card.metric(group.card.primary)
    if metric is None:
        return None
    found = [(r, r.cells[metric.id], r.cells[primary.id]) for r in group.rows if {metric.id, primary.id} <= r.cells.keys()]
    found = [(r, x, y) for r, x, y in found if x.value.value > 0]
    if len(found) < 2:
        return None

    def paint(figure: Any, axes: Any) -> None:
        axes.set_xscale("log")
        for row, x, y in found:
            colour = styles.colour(row.address)
            seeds = seed_values(row, primary.id)
            axes.plot([x.value.value] * len(seeds), seeds, "o", ms=3.5, mew=0, color=colour, alpha=0.35, zorder=2)
            axes.errorbar(x.value.value, y.value.value, xerr=_ratio_error(x), yerr=_error(y), color=colour, lw=1.3, zorder=3)
            axes.plot(x.value.value, y.value.value, styles.marker(row.address), ms=7, mew=0, color=colour, zorder=4)
        for row, x, y in found:  # after all points: lines on axes that span nothing make matplotlib divide by zero
            if row.baseline:
                axes.axhline(y.value.value, color=LIGHT["muted"], lw=0.9, ls=(0, (4, 3)), zorder=1)
                axes.axvline(x.value.value, color=LIGHT["muted"], lw=0.9, ls=(0, (4, 3)), zorder=1)
        best = frontier([(x.value.value, y.value.value) for _, x, y in found], metric.direction, primary.direction)
        if len(best) > 1:
            axes.plot(*zip(*best, strict=True), color=LIGHT["ink"], lw=2.2, alpha=0.55, zorder=1.5)
        axes.margins(0.14, 0.14)
        ticks.log_ticks(axes, "x", metric.unit, [x.value.value for _, x, _ in found])
        axes.set_xlabel(f"{ticks.name(metric)} ({ticks.better(metric)})")
        axes.set_ylabel(f"{ticks.name(primary)} ({ticks.better(primary)})")
        points = [(r.address, x.value.value, y.value.value) for r, x, y in found]
        bars = [bar for _, x, y in found for bar in _bars(x, y)]
        (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
        for row, x, y in found:
            if row.baseline:
                bars += [(left, y.value.value, right, y.value.value), (x.value.value, low, x.value.value, high)]
        labels.at_points(figure, axes, styles, points, bars)

    rows = [[r.address, x.value.value, x.value.low, x.value.high, y.value.value, y.value.low, y.value.high] for r, x, y in found]
    csv = sheet(["method", metric.id, "low", "high", primary.id, "low", "high"], rows)
    note = (
        "Crosses are 95 % intervals of the distance from the baseline (dashed), faint dots are seeds; "
        "the bold line joins what nothing beats in both."
    )
    return draw(f"{prefix}-tradeoff-{kind}", f"Quality against {kind}", note, csv, paint)


def frontier(points: Sequence[tuple[float, float]], x_direction: str, y_direction: str) -> list[tuple[float, float]]:
    """The points that no other beats in both, by x."""
    sx, sy = (1 if x_direction == "lower" else -1), (1 if y_direction == "lower" else -1)
    keys = [(sx * x, sy * y) for x, y in points]

    def beaten(a: tuple[float, float]) -> bool:
        return any(b != a and b[0] <= a[0] and b[1] <= a[1] for b in keys)

    return sorted({p for p, key in zip(points, keys, strict=True) if not beaten(key)})


def cost_against_length(group: Group, styles: Styles, prefix: str, family: Family) -> Plot:
    """A cost of a group at every length."""
    lines = {row.address: scaling.line(row, family) for row in group.rows}
    base = group.baseline.address if group.baseline else ""
    return against_length(lines, base, family.first, units.sentence(family.title), styles, f"{prefix}-{family.name}")


def against_length(
    given: Mapping[str, Sequence[tuple[float, float]]], base: str, metric: Metric, title: str, styles: Styles, name: str
) -> Plot:
    """Lines of a cost by length, log-log, with the crossings of the baseline's line."""
    lines = {address: [(x, y) for x, y in points if y > 0] for address, points in given.items()}
    lines = {address: points for address, points in lines.items() if points}
    reference = lines.get(base, [])
    crossings = {a: c for a, points in lines.items() if a != base and (c := scaling.crossing(points, reference)) is not None}
    over = metric.over or "condition"

    def paint(figure: Any, axes: Any) -> None:
        axes.set_xscale("log")
        axes.set_yscale("log")
        for address, points in lines.items():
            axes.plot(
                *zip(*points, strict=True),
                marker=styles.marker(address),
                ms=5,
                mew=0,
                lw=1.8,
                ls=(0, (5, 2)) if address == base else "-",
                color=styles.colour(address),
            )
        for address, crossing in crossings.items():
            for x in crossing.at:
                y = math.exp(np.interp(math.log(x), *np.log(np.array(reference)).T))
                axes.plot(x, y, "o", ms=10, mew=1.4, mfc="none", color=styles.colour(address), zorder=5)
        ticks.length_ticks(axes, sorted({x for points in lines.values() for x, _ in points}))
        ticks.log_ticks(axes, "y", metric.unit, [y for points in lines.values() for _, y in points])
        axes.set_xlabel(over)
        axes.set_ylabel(f"{title} ({ticks.better(metric)})")
        labels.at_ends(figure, axes, styles, [(a, *points[-1]) for a, points in lines.items()])

    rows = [[address, x, y] for address, points in lines.items() for x, y in points]
    note = "Both axes are logarithmic. Rings mark where a line crosses the baseline's (dashed)."
    return draw(name, title, note, sheet(["method", over, metric.unit], rows), paint)


def learning(group: Group, styles: Styles, prefix: str) -> Plot | None:
    """Training loss by step: the median over seeds with the range of the seeds."""
    curves = {row.address: _curve(row) for row in group.rows}
    found = {address: c for address, c in curves.items() if c is not None}
    if not found:
        return None

    def paint(figure: Any, axes: Any) -> None:
        for address, (steps, losses) in found.items():
            colour = styles.colour(address)
            axes.fill_between(steps, losses.min(axis=0), losses.max(axis=0), color=colour, alpha=0.16, lw=0)
            axes.plot(steps, np.median(losses, axis=0), color=colour, lw=1.7)
        top = max(float(np.interp(0.08 * s[-1], s, loss.max(axis=0))) for s, loss in found.values())
        low = min(float(loss.min()) for _, loss in found.values())
        axes.set_ylim(low - 0.04 * (top - low or 1), top + 0.02 * (top - low or 1))
        axes.set_xlim(0, None)
        axes.set_xlabel("training step")
        axes.set_ylabel("Training loss")
        labels.at_ends(figure, axes, styles, [(a, float(s[-1]), float(np.median(y, axis=0)[-1])) for a, (s, y) in found.items()])

    rows = [
        [a, int(s), float(np.median(y[:, i])), float(y[:, i].min()), float(y[:, i].max())]
        for a, (steps, y) in found.items()
        for i, s in enumerate(steps)
    ]
    note = "Median over seeds and their range, smoothed over a twentieth of the run; the first steps may lie above the frame."
    return draw(f"{prefix}-learning", "Learning curves", note, sheet(["method", "step", "median", "low", "high"], rows), paint)


def paired(group: Group, styles: Styles, prefix: str) -> Plot | None:
    """The paired differences behind the verdicts: one dot a seed, the interval, the margin."""
    primary = group.card.metric(group.card.primary)
    found = [(row, row.cells[primary.id]) for row in group.rows if primary.id in row.cells]
    found = [(row, cell) for row, cell in found if cell.difference is not None]
    if not found:
        return None
    heights = range(len(found))[::-1]

    def paint(figure: Any, axes: Any) -> None:
        axes.axvspan(-primary.margin, primary.margin, color=LIGHT["line"], alpha=0.55, lw=0)
        axes.axvline(0, color=LIGHT["muted"], lw=1)
        for height, (row, cell) in zip(heights, found, strict=True):
            colour, far = styles.colour(row.address), cell.difference
            assert far is not None
            axes.plot(cell.by_seed, [height] * len(cell.by_seed), "o", ms=5, mew=0, alpha=0.45, color=colour)
            if far.interval is not None:
                axes.plot(far.interval, [height + 0.22] * 2, color=colour, lw=2.4)
            axes.plot(far.value, height + 0.22, styles.marker(row.address), ms=7, mew=0, color=colour)
        axes.set_yticks(list(heights), [label(row.address) for row, _ in found], color=LIGHT["ink"])
        axes.set_ylim(-0.6, len(found) - 0.2)
        axes.grid(False, axis="y")
        axes.locator_params(axis="x", nbins=5)
        axes.margins(x=0.08)
        base = group.baseline
        axes.set_xlabel(f"{ticks.name(primary)}, minus {label(base.address) if base else 'baseline'} ({ticks.better(primary)})")

    rows = [
        [row.address, c.difference.value, c.difference.low, c.difference.high, *c.by_seed] for row, c in found if c.difference
    ]
    csv = sheet(["method", "difference", "low", "high", "by seed"], rows)
    note = f"One dot a seed, with the 95 % interval above; the grey band is the margin of ±{primary.margin:g} {primary.unit}."
    return draw(f"{prefix}-paired", "Paired differences", note, csv, paint, height=1.5 + 0.52 * len(found))


def by_condition(group: Group, styles: Styles, prefix: str, family: Family) -> Plot | None:
    """A quality under each condition (the length it is evaluated at, …)."""
    found = {row.address: [(i, row.cells[m.id]) for i, m in enumerate(family.members) if m.id in row.cells] for row in group.rows}
    found = {address: cells for address, cells in found.items() if len(cells) > 1}
    if not found:
        return None

    def paint(figure: Any, axes: Any) -> None:
        for address, cells in found.items():
            x = [i for i, _ in cells]
            y = [c.value.value for _, c in cells]
            bars = np.hstack([_error(c) for _, c in cells])
            look: dict[str, Any] = {"marker": styles.marker(address), "ms": 5.5, "mew": 0, "color": styles.colour(address)}
            axes.errorbar(x, y, yerr=bars, lw=1.7, elinewidth=1.1, **look)
        axes.set_xticks(range(len(family.members)), [label(scaling.condition(m), 10) for m in family.members])
        axes.set_xlabel(family.over)
        axes.set_ylabel(f"{units.sentence(family.title)} ({ticks.better(family.first)})")
        labels.at_ends(figure, axes, styles, [(a, float(c[-1][0]), c[-1][1].value.value) for a, c in found.items()])

    rows = [
        [a, scaling.condition(family.members[i]), c.value.value, c.value.low, c.value.high]
        for a, cs in found.items()
        for i, c in cs
    ]
    csv = sheet(["method", family.over, family.first.unit, "low", "high"], rows)
    return draw(
        f"{prefix}-{family.name}",
        f"{units.sentence(family.title)} by {family.over}",
        "Mean over seeds; the bars are 95 % intervals of the difference from the baseline.",
        csv,
        paint,
    )


def seed_values(row: Row, metric: str) -> list[float]:
    """A quality metric of each run."""
    return [items.value for run in row.runs if (items := record.items(run, metric)) is not None]


def _curve(row: Row) -> tuple[np.ndarray, np.ndarray] | None:
    """Steps, and losses [seeds, steps], smoothed."""
    curves = [np.array(run["curve"], dtype=float) for run in row.runs if len(run.get("curve") or []) > 1]
    if not curves:
        return None
    steps = min(curves, key=len)[:, 0]
    window = max(1, len(steps) // 20)
    counts = np.convolve(np.ones(len(steps)), np.ones(window), "same")
    losses = [np.convolve(np.interp(steps, c[:, 0], c[:, 1]), np.ones(window), "same") / counts for c in curves]
    return steps, np.stack(losses)


def _error(cell: Cell) -> np.ndarray:
    """Lengths of a quality's error bar: the interval of its difference from the baseline, without what the items do to both."""
    far = cell.difference
    if far is None or far.interval is None:
        return np.zeros((2, 1))
    return np.array([[far.value - far.interval[0]], [far.interval[1] - far.value]])


def _ratio_error(cell: Cell) -> np.ndarray:
    """The same for a cost, of which the ratio is known."""
    far = cell.difference
    if far is None or far.interval is None:
        return np.zeros((2, 1))
    low, high = (v / far.value * cell.value.value for v in far.interval)
    return np.array([[cell.value.value - low], [high - cell.value.value]])


def _bars(x: Cell, y: Cell) -> list[tuple[float, float, float, float]]:
    """The two lines of a cross, as boxes."""
    (left,), (right,) = _ratio_error(x)
    (low,), (high,) = _error(y)
    at, up = x.value.value, y.value.value
    return [(at - left, up, at + right, up), (at, up - low, at, up + high)]
