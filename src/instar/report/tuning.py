"""What tuning tried, what it chose, and what more or fewer trials would have brought."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from instar import catalogue
from instar.bench import tune
from instar.bench.record import Record
from instar.bench.summary import Group
from instar.cards import Knob
from instar.errors import UnknownNameError
from instar.report import units
from instar.report.plots import Plot, Styles, draw
from instar.report.table import sheet


@dataclass(frozen=True)
class Choice:
    """One tuned value against the range it could have had."""

    name: str
    value: str
    space: str
    edge: bool


@dataclass(frozen=True)
class Tuned:
    """The trials of one method."""

    address: str
    trials: int
    failed: int
    chosen: str
    best: str
    choices: list[Choice]


def tuned(group: Group) -> list[Tuned]:
    """One line a method that has trials."""
    metric = group.card.metric(group.card.primary)
    found = []
    for row in group.rows:
        trials = [t for t in group.trials if t["address"] == row.address]
        if not trials:
            continue
        best = tune.best(trials, metric.id, metric.direction)
        failed = sum(t["status"] != "ok" for t in trials)
        value = units.quantity(best["metrics"][metric.id]["value"], metric.unit, 4) if best else "no trial succeeded"
        found.append(Tuned(row.address, len(trials), failed, best["setting"] if best else "", value, _choices(group, best)))
    return found


def best_of(values: Sequence[float], direction: str) -> list[float]:
    """Expected best of k = 1 … n trials drawn with replacement from those made (Dodge et al. 2019)."""
    ordered = sorted(values, reverse=direction == "lower")  # the last is the best
    n = len(ordered)
    return [sum(v * ((i / n) ** k - ((i - 1) / n) ** k) for i, v in enumerate(ordered, 1)) for k in range(1, n + 1)]


def plot(group: Group, styles: Styles, prefix: str) -> Plot | None:
    """Expected best validation figure by number of trials."""
    metric = group.card.metric(group.card.primary)
    curves: dict[str, list[float]] = {}
    for row in group.rows:
        good = [
            t["metrics"][metric.id]["value"]
            for t in group.trials
            if t["address"] == row.address and metric.id in t.get("metrics", {})
        ]
        if len(good) > 1:
            curves[row.address] = best_of(good, metric.direction)
    if not curves:
        return None

    def paint(figure: Any, axes: Any) -> None:
        from instar.report import labels

        for address, values in curves.items():
            axes.plot(range(1, len(values) + 1), values, marker=styles.marker(address), ms=4.5, mew=0, lw=1.7,
                      color=styles.colour(address))  # fmt: skip
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel("trials")
        axes.set_ylabel(f"{units.sentence(metric.title)}, validation ({metric.direction} is better)")
        labels.at_ends(figure, axes, styles, [(a, float(len(v)), v[-1]) for a, v in curves.items()])

    rows = [[a, k, v] for a, values in curves.items() for k, v in enumerate(values, 1)]
    note = "Expected best of k of the trials made, on the validation split: what tuning effort buys each method."
    return draw(f"{prefix}-tuning", "Best of k trials", note, sheet(["method", "k", metric.id], rows), paint)


def _choices(group: Group, best: Record | None) -> list[Choice]:
    if best is None:
        return []
    problem, method = best["spec"]["problem"], best["spec"]["method"]
    found = [_choice(f"{group.problem}.{name}", problem["settings"].get(name), knob) for name, knob in group.card.knobs.items()]
    try:
        knobs = catalogue.method(method["slug"]).knobs
    except UnknownNameError:  # a method of the user's own, given to the comparison by its file
        knobs = {}
    preset = best["address"].partition(":")[2]
    return found + [_choice(name, method["arguments"].get(name), knob.of(preset)) for name, knob in knobs.items()]


def _choice(name: str, value: Any, knob: Knob) -> Choice:
    if knob.range is None:
        return Choice(name, str(value), " | ".join(map(str, knob.choices or [])), False)
    low, high = knob.range
    edge = False
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if knob.scale == "log":
            near = (high / low) ** 0.05
            edge = value <= low * near or value >= high / near
        else:
            near = 0.05 * (high - low)
            edge = value <= low + near or value >= high - near
    text = units.number(value) if isinstance(value, (int, float)) else str(value)
    return Choice(name, text, f"{low:g} … {high:g}{', log' if knob.scale == 'log' else ''}", edge)
