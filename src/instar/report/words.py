"""The answer of a comparison in plain sentences, made from its statistics and from nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import special

from instar.bench.statistics import MINIMUM_SEEDS
from instar.bench.summary import Cell, Group, Row
from instar.cards import Metric
from instar.report import columns, scaling, units

CAUTION = "Quality rankings of small models trained from scratch do not transfer to larger ones."
_MOST_SEEDS = 200


@dataclass(frozen=True)
class Passage:
    """What is said of one method."""

    address: str
    verdict: str
    glyph: str
    quality: list[str] = field(default_factory=list)
    costs: list[str] = field(default_factory=list)
    properties: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Answer:
    """The first thing on the page."""

    headline: str
    scope: str
    cautions: list[str]
    passages: list[Passage]
    advice: list[str]


def answer(group: Group) -> Answer:
    """The answer of one comparison."""
    return Answer(headline(group), scope(group), cautions(group), [_passage(group, row) for row in _others(group)], advice(group))


def headline(group: Group) -> str:
    """One sentence: what can be said of each method against the baseline on the primary metric."""
    base, primary = group.baseline, group.card.metric(group.card.primary)
    if base is None:
        return "The baseline is not among the records, so no method can be compared with it."
    cells = {row.address: row.cells.get(primary.id) for row in _others(group)}
    if not cells:
        return f"Only the baseline {base.address} was run: there is nothing to compare it with."
    if not any(cells.values()) and primary.id not in base.cells:
        return f"{units.sentence(primary.title)} was not measured: this page shows costs only."
    said: dict[str, list[str]] = {}
    for address, cell in cells.items():
        said.setdefault(_state(cell), []).append(address)
    if set(said) == {"few"}:
        few = f"With fewer than {MINIMUM_SEEDS} seeds no interval can be given"
        return f"{few}, so no method is called better or worse than {base.address}."
    order = {
        "better": "better",
        "worse": "worse",
        "equal within the margin": "equal within the margin",
        "undecided": "not to be told apart",
        "few": "without a verdict (too few seeds)",
        "alone": "without a figure of the baseline to stand against",
        "missing": "without a result",
    }
    parts = [f"{_list(said[key])} {'is' if len(said[key]) == 1 else 'are'} {word}" for key, word in order.items() if key in said]
    found = f"against {base.address}, on {_lower(primary.title)}: {'; '.join(parts)}"
    return f"A{found[1:]}." if group.card.advice else f"In these small runs, {found}. They rank no architectures."


def scope(group: Group) -> str:
    """What was compared: data, items, seeds, budget."""
    primary = group.card.metric(group.card.primary)
    seeds = [len(row.runs) for row in group.rows if row.runs]
    items = next((c.value.items for row in group.rows if (c := row.cells.get(primary.id))), 0)
    budget = group.key.get("budget")
    parts = []
    if name := data_name(group):
        parts.append(f"data: {name}")
    if items:
        parts.append(f"{items:,} test items".replace(",", " "))
    if seeds:
        low, high = min(seeds), max(seeds)
        parts.append(f"{low if low == high else f'{low}–{high}'} seed{'s' if high > 1 else ''}")
    if budget:
        parts.append(f"budget: {budget} a run")
    if primary.margin:
        parts.append(f"differences below {primary.margin:g} {primary.unit} do not count".replace("  ", " "))
    return " · ".join(parts)


def data_name(group: Group) -> str:
    """The data as the records name them."""
    for row in group.rows:
        for run in row.runs:
            facts = run.get("data", {})
            for key in ("name", "files", "file", "source"):
                found = facts.get(key)
                if found:
                    names = found if isinstance(found, list) else [found]
                    return ", ".join(str(n).rsplit("/", 1)[-1] for n in names[:3]) + (" …" if len(names) > 3 else "")
            source = run.get("sources", {}).get("data")
            if source:
                return ", ".join(str(s).rsplit("/", 1)[-1] for s in (source if isinstance(source, list) else [source]))
    return ""


def cautions(group: Group) -> list[str]:
    """What a reader must know before using the answer."""
    found = []
    if not group.card.advice:
        found.append((group.card.caution or CAUTION) + " This page therefore gives no advice on which method to choose.")
    elif group.card.caution:
        found.append(group.card.caution)
    found += columns.floors(group)
    failed = sum(len(row.failures) for row in group.rows)
    if failed:
        found.append(f"{failed} run{'s' if failed > 1 else ''} failed; the reasons stand below.")
    if any(cell.busy for row in group.rows for cell in row.cells.values()):
        found.append(
            "Some times were measured while other work held the machine; they are marked. "
            "Ratios, taken round by round, suffer less than the times."
        )
    return found


def advice(group: Group) -> list[str]:
    """Recommendations, only where the problem's card says that the budget is the real scale."""
    base, primary = group.baseline, group.card.primary
    if not group.card.advice or base is None:
        return []
    cells = {row.address: row.cells.get(primary) for row in _others(group)}
    better = [a for a, c in cells.items() if c and c.verdict == "better"]
    equal = [row for row in _others(group) if (c := cells[row.address]) and c.verdict == "equal within the margin"]
    found = []
    if better:
        found.append(f"Shown to be better than {base.address} here: {_list(better)}.")
    for row in equal:
        cheaper = [columns.header(group, m) for m in columns.shown(group) if m.kind != "quality" and _verdict(row, m) == "better"]
        if cheaper:
            found.append(
                f"{row.address} is equal to {base.address} within the margin and ahead in {_list([_lower(c) for c in cheaper])}."
            )
    return found or [f"Nothing here is shown to be better than {base.address}: keep it."]


def seeds_needed(cell: Cell, margin: float) -> int | None:
    """Roughly how many seeds would decide a difference of this size and spread; None when no number of them would.

    Decided means: the interval excludes 0, or lies within the margin. The part of the interval that seeds do not explain
    comes from the test items and stays.
    """
    found = cell.difference
    if found is None or found.interval is None or len(cell.by_seed) < 2:
        return None
    target = max(abs(found.value), margin - abs(found.value))
    half = (found.interval[1] - found.interval[0]) / 2
    spread = float(np.std(cell.by_seed, ddof=1))

    def by_seeds(n: int) -> float:
        return float(special.stdtrit(n - 1, 0.975)) * spread / math.sqrt(n)

    items = math.sqrt(max(0.0, half**2 - by_seeds(len(cell.by_seed)) ** 2))
    return next((n for n in range(len(cell.by_seed) + 1, _MOST_SEEDS) if math.hypot(by_seeds(n), items) < target), None)


def _passage(group: Group, row: Row) -> Passage:
    primary = group.card.metric(group.card.primary)
    cell = row.cells.get(primary.id)
    state = _state(cell)
    qualities = [m for m in columns.shown(group) if m.kind == "quality" and m.id != primary.id]
    wanted = [primary, *(m for m in qualities if _conditions(group, m) is None)]
    said = [_quality(group, row, m) for m in wanted if row.failures or any(m.id in other.cells for other in group.rows)]
    verdict = {"few": "no verdict", "alone": "no verdict", "missing": "no result"}.get(state, state)
    return Passage(row.address, verdict, columns.GLYPHS.get(state, ""), said, _costs(group, row), _properties(group, row))


def _quality(group: Group, row: Row, metric: Metric) -> str:
    cell, base = row.cells.get(metric.id), group.baseline
    name = columns.header(group, metric)
    if cell is None:
        return f"{name}: no figure ({columns.why_missing(group, row, metric)})."
    value = " ".join(units.estimate(cell.value, metric.unit)).strip()
    far = cell.difference
    if base is None or far is None:
        return f"{name}: {value}; there is no figure of the baseline with the same seeds to compare it with."
    short = units.signed(far.value, metric.unit, far.low, far.high)
    if far.interval is None and cell.reason:
        return f"{name}: {value}, {short} against {base.address}: {cell.verdict}, {cell.reason}."
    if far.interval is None:
        count = f"{far.seeds} seed{'s' if far.seeds > 1 else ''}"
        return f"{name}: {value}, {short} against {base.address} with {count}: no interval below {MINIMUM_SEEDS}."
    around = (
        f"{name}: {value}, {short} against {base.address} (95 % interval {units.interval(*far.interval, metric.unit, far.value)})"
    )
    if cell.verdict == "equal within the margin":
        return f"{around}: equal within the margin of {metric.margin:g}."
    if cell.reason:
        return f"{around}: {cell.verdict}, {cell.reason}."
    if cell.verdict == "undecided":
        needed = seeds_needed(cell, metric.margin)
        more = (
            f"about {needed} seeds instead of {far.seeds} would decide it"
            if needed
            else "more test data, or very many seeds, would be needed"
        )
        return f"{around}: undecided; {more}."
    return f"{around}: {cell.verdict}."


def _costs(group: Group, row: Row) -> list[str]:
    base = group.baseline
    if base is None:
        return []
    said, same = [], []
    families = {f.name: f for f in scaling.scaled(group)}
    for metric in columns.shown(group):
        cell = row.cells.get(metric.id)
        if metric.kind == "quality" or cell is None or cell.difference is None:
            continue
        if cell.verdict == "equal":
            same.append(metric.title)
            continue
        text = f"{columns.header(group, metric)}: {_ratio(cell, base.address)}"
        family = families.get(metric.id.partition("@")[0])
        found = scaling.crossings(group, family).get(row.address) if family else None
        if family and found:
            text += f"; {scaling.in_words(found, family.over, base.address)}"
        said.append(text + ("; measured on a busy machine." if cell.busy else "."))
    if same:
        said.append(f"The same as {base.address}: {_list(same)}.")
    return said


def _ratio(cell: Cell, base: str) -> str:
    far = cell.difference
    assert far is not None
    text = f"{units.times(far.value)} that of {base}"
    if far.interval is not None and far.low != far.high:
        text += f" ({' … '.join(units.times(v) for v in far.interval)})"
    return text + (
        ", undecided" if cell.verdict == "undecided" else ", equal within the margin" if cell.verdict.startswith("equal") else ""
    )


def _properties(group: Group, row: Row) -> list[str]:
    """How a quality changes with its condition (evaluated beyond the training length, more to recall, …), beside the baseline."""
    said, base = [], group.baseline
    for family in scaling.families(group.metrics):
        if family.first.kind != "quality" or len(family.members) < 2:
            continue
        mine = [m for m in family.members if m.id in row.cells]
        if len(mine) < 2:
            continue
        unit = f", in {family.first.unit}" if units.scale(family.first.unit, 1.0)[1] else ""
        text = f"{units.sentence(family.title)} by {family.over}{unit}: {_chain(row, mine)}"
        if base is not None and base is not row and all(m.id in base.cells for m in mine):
            text += f" ({base.address}: {_chain(base, mine)})"
        said.append(text + ".")
    return said


def _chain(row: Row, metrics: Sequence[Metric]) -> str:
    return " → ".join(f"{units.number(row.cells[m.id].value.value)} at {scaling.condition(m)}" for m in metrics)


def _conditions(group: Group, metric: Metric) -> scaling.Family | None:
    """The family of a metric with several conditions: it is told as a property."""
    return next((f for f in scaling.families(group.metrics) if metric in f.members and len(f.members) > 1), None)


def _state(cell: Cell | None) -> str:
    if cell is None:
        return "missing"
    if cell.difference is None:
        return "alone"
    return cell.verdict or "few"


def _verdict(row: Row, metric: Metric) -> str:
    cell = row.cells.get(metric.id)
    return cell.verdict if cell else ""


def _others(group: Group) -> list[Row]:
    return [row for row in group.rows if not row.baseline]


def _list(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _lower(text: str) -> str:
    """A title inside a sentence; abbreviations keep their capitals."""
    return text if text[1:2].isupper() else text[:1].lower() + text[1:]
