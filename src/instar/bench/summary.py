"""What the records say: one `Comparison` for each problem, data and budget among them. The table in the terminal, the page and
the claims are all made from this.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from instar import catalogue
from instar.bench import record, statistics
from instar.bench.record import Record
from instar.bench.statistics import Estimate
from instar.cards import Metric
from instar.items import Floor, Items


@dataclass(frozen=True)
class Cell:
    """One figure of one method: its value, and its distance from the baseline where that can be told."""

    value: Estimate
    difference: Estimate | None = None
    """Subject minus baseline for quality; subject / baseline for costs and times."""
    verdict: str = ""
    """"better", "worse", "equal within the margin", "undecided" or "" (the baseline itself, or too few seeds)."""
    by_seed: tuple[float, ...] = ()
    """The paired differences (quality) or ratios (times) behind the interval."""
    busy: bool = False
    """A time measured while other work held the machine."""
    reason: str = ""
    """Why it is undecided, where that is not the width of the interval."""


@dataclass
class Row:
    """One method of a comparison."""

    address: str
    baseline: bool
    setting: str
    runs: list[Record]
    cells: dict[str, Cell] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


@dataclass
class Group:
    """The records of one problem, data, settings and budget: what may be compared with one another."""

    problem: str
    key: dict[str, Any]
    rows: list[Row]
    trials: list[Record]
    timing: Record | None
    metrics: list[Metric]
    floors: dict[str, Floor] = field(default_factory=dict)

    @property
    def baseline(self) -> Row | None:
        return next((row for row in self.rows if row.baseline), None)

    @property
    def card(self) -> Any:
        return catalogue.problem(self.problem)


def summarise(records: Sequence[Record], metrics: Collection[str] | None = None) -> list[Group]:
    """Group the records and compute every cell, or those of some `metrics` by id, since each interval is a bootstrap."""
    groups: dict[str, list[Record]] = {}
    records = record.current(records)
    for item in records:
        if item["kind"] in ("run", "trial"):
            groups.setdefault(record.identity(record.comparison(item)), []).append(item)
    result = [_group(members, records, metrics) for members in groups.values()]
    covered = {id(g.timing) for g in result}
    for item in records:  # a timing pass without training still says what things cost
        if item["kind"] == "timing" and item["status"] == "ok" and id(item) not in covered:
            result.append(_timing_only(item))
    return sorted(result, key=lambda g: (g.problem, record.identity(g.key)))


def _group(members: list[Record], records: Sequence[Record], metrics: Collection[str] | None) -> Group:
    key = record.comparison(members[0])
    card = catalogue.problem(key["problem"])
    rows: dict[str, Row] = {}
    for item in sorted((m for m in members if m["kind"] == "run"), key=lambda m: m["spec"]["seed"]):
        name = item["address"]
        row = rows.setdefault(name, Row(name, bool(item.get("baseline")), item.get("setting", "default"), []))
        if item["status"] == "ok":
            row.runs.append(item)
        else:
            row.failures.append(f"seed {item['spec']['seed']}: {item['status']}: {item['reason']}")
    timing = next((r for r in reversed(records) if _times(r, key, rows)), None)
    ordered = sorted(rows.values(), key=lambda r: (not r.baseline, r.address not in card.baseline.values(), r.address))
    for row in ordered[1:]:  # of folders that were compared with different ones, the problem's own is the baseline of them all
        row.baseline = False
    ordered[1:] = sorted(ordered[1:], key=lambda r: r.address)
    group = Group(key["problem"], key, ordered, [m for m in members if m["kind"] == "trial"], timing, card.metrics)
    group.floors = next((m["floors"] for m in members if "floors" in m), {})
    for metric in card.metrics if metrics is None else [m for m in card.metrics if m.id in metrics]:
        for row in ordered:
            cell = {"quality": _quality, "cost": _cost, "time": _time}[metric.kind](group, row, metric)
            if cell is not None:
                row.cells[metric.id] = cell
    return group


def _times(item: Record, key: dict[str, Any], rows: dict[str, Row]) -> bool:
    if item["kind"] != "timing" or item["status"] != "ok":
        return False
    problem = item["spec"]["problem"]
    same = all(key["settings"].get(k, v) == v for k, v in problem["settings"].items())
    same = same and item["spec"].get("data", key["data"]) == key["data"]
    return problem["slug"] == key["problem"] and same and set(rows) <= set(item["times"])


def _timing_only(item: Record) -> Group:
    card = catalogue.problem(item["spec"]["problem"]["slug"])
    default = card.baseline[card.accepts[0]]
    rows = [Row(a, a == default, "default", []) for a in sorted(item["times"], key=lambda a: (a != default, a))]
    key = {"problem": card.slug, "settings": item["spec"]["problem"]["settings"], "data": None, "budget": None}
    group = Group(card.slug, key, rows, [], item, card.metrics)
    for metric in card.metrics:
        for row in rows:
            cell = _time(group, row, metric) if metric.kind == "time" else None
            if cell is not None:
                row.cells[metric.id] = cell
    return group


def _quality(group: Group, row: Row, metric: Metric) -> Cell | None:
    mine = _by_seed(row, metric.id)
    if not mine:
        return None
    value = statistics.value(list(mine.values()))
    base = group.baseline
    theirs = _by_seed(base, metric.id) if base is not None and base is not row else {}
    seeds = [s for s in mine if s in theirs]
    if not seeds:
        return Cell(value)
    difference = statistics.paired([mine[s] for s in seeds], [theirs[s] for s in seeds])
    gain = statistics.improvement(difference, metric.direction)
    word, reason = _word(gain, metric.margin), ""
    if word in ("equal within the margin", "undecided") and metric.id in group.floors:
        both = [sum(found[s].value for s in seeds) / len(seeds) for found in (mine, theirs)]
        reason = group.floors[metric.id].holds(both, metric.direction, metric.margin)
    if gain.interval is None and gain.seeds >= statistics.MINIMUM_SEEDS:
        reason = "one item, of which all seeds say the same, has no interval"
    by_seed = tuple(mine[s].value - theirs[s].value for s in seeds)
    return Cell(value, difference, "undecided" if reason else word, by_seed, reason=reason)


def _cost(group: Group, row: Row, metric: Metric) -> Cell | None:
    found = [run["costs"][metric.id] for run in row.runs if metric.id in run.get("costs", {})]
    if not found:
        return None
    base = group.baseline
    theirs = [run["costs"][metric.id] for run in base.runs if metric.id in run.get("costs", {})] if base else []
    if base is row or not theirs or not theirs[0]:
        return Cell(statistics.exact(found[0]))
    times = found[0] / theirs[0]
    better = (times < 1) == (metric.direction == "lower")
    return Cell(statistics.exact(found[0]), statistics.exact(times), "equal" if times == 1 else "better" if better else "worse")


def _time(group: Group, row: Row, metric: Metric) -> Cell | None:
    times = group.timing["times"] if group.timing else {}
    mine = times.get(row.address, {}).get(metric.id)
    if mine is None:
        return None
    per_second = metric.unit.endswith("/s")
    low, high = min(mine["rounds"]), max(mine["rounds"])
    value = (
        Estimate(1 / mine["median"], 1 / high, 1 / low, len(mine["rounds"]))
        if per_second
        else Estimate(mine["median"], low, high, len(mine["rounds"]))
    )
    busy = mine["cpu_over_wall"] < 0.75
    base = group.baseline
    theirs = times.get(base.address, {}).get(metric.id) if base is not None and base is not row else None
    if theirs is None:
        return Cell(value, busy=busy)
    pairs = list(zip(mine["rounds"], theirs["rounds"], strict=False))
    ratios = tuple(b / a if per_second else a / b for a, b in pairs)
    ratio = statistics.ratio(ratios, [1.0] * len(ratios))
    gain = statistics.improvement(_minus_one(ratio), metric.direction)
    return Cell(value, ratio, _word(gain, metric.margin), ratios, busy)


def _minus_one(ratio: Estimate) -> Estimate:
    low, high = ratio.interval or (None, None)
    return Estimate(ratio.value - 1, None if low is None else low - 1, None if high is None else high - 1, ratio.seeds)


def _word(gain: Estimate, margin: float) -> str:
    """What may be said of an improvement: within the margin is a finding of its own."""
    if gain.interval is None:
        return ""
    low, high = gain.interval
    if low > 0 and high > margin:
        return "better"
    if high < 0 and low < -margin:
        return "worse"
    return "equal within the margin" if statistics.equivalent(gain, margin) == "holds" else "undecided"


def _by_seed(row: Row, metric: str) -> dict[int, Items]:
    found = {}
    for run in row.runs:
        entry = record.items(run, metric)
        if entry is not None:
            found[int(run["spec"]["seed"])] = entry
    return found
