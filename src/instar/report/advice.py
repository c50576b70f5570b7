"""From what a suite measured to plain words: facts of each method, the rules that hold for it, and where perplexity misleads."""

from __future__ import annotations

import math
import string
from collections.abc import Mapping
from dataclasses import dataclass

from instar.bench import statistics
from instar.bench.curves import Curve
from instar.bench.suite import Findings, Question
from instar.bench.suites import Part, Rule
from instar.bench.summary import Cell
from instar.report import units

_PER_LAYER = {"seconds": "forward_seconds", "state": "state_bytes", "saved": "saved_bytes"}


@dataclass(frozen=True)
class Said:
    """One rule that holds of a method."""

    rule: str
    text: str
    excludes: bool


@dataclass(frozen=True)
class Verdict:
    """A method under the question: out if a rule excludes it."""

    address: str
    said: list[Said]

    @property
    def out(self) -> bool:
        return any(one.excludes for one in self.said)


@dataclass(frozen=True)
class Misled:
    """A method that a likelihood recommends, as no worse than the baseline or the best, and that another part shows as worse."""

    address: str
    likelihood: str
    other: str
    text: str


def verdicts(found: Findings) -> list[Verdict]:
    """What the rules say of every method, the baseline first."""
    facts = {curve.address: _costs(curve, found.question) for curve in found.curves}
    exact = facts.get(found.baseline, {})
    result = []
    for curve in found.curves:
        known = facts[curve.address] | {f"exact_{k}": v for k, v in exact.items()}
        known["baseline"] = float(curve.address == found.baseline)
        cells = [cell_of(found, part, curve.address) for part in found.parts]
        known["better"] = float(sum(cell is not None and cell.verdict == "better" for cell in cells))
        words = _words(known, found.question) | {"ended": curve.ended or "the length was not asked for"}
        result.append(
            Verdict(curve.address, [said for rule in found.suite.rules for said in _said(rule, known, words, curve, found)])
        )
    return result


def misled(found: Findings) -> list[Misled]:
    """Where a likelihood alone would mislead: what it recommends is worse by what else was asked of the same method."""
    result = []
    parts = {part.id: part for part in found.parts}
    for address in dict.fromkeys(row.address for name in parts for row in found.groups[name].rows):
        cells = {name: cell for name in parts if (cell := cell_of(found, parts[name], address)) is not None}
        for name, cell in cells.items():
            praise = _praise(found, parts[name], cell) if parts[name].likelihood else ""
            for other, answer in cells.items():
                if praise and not parts[other].likelihood and answer.verdict == "worse":
                    text = (
                        f"{address} {praise} at {parts[name].title} ({difference(parts[name], cell)}) and is worse at "
                        f"{parts[other].title} ({difference(parts[other], answer)})."
                    )
                    result.append(Misled(address, name, other, text))
    return result


def no_worse(part: Part, cell: Cell) -> bool:
    """Whether the whole interval of the gain lies at or above minus the margin, and not because neither has learnt anything."""
    if cell.difference is None or cell.reason:
        return False
    gain = statistics.improvement(cell.difference, part.metric.direction).interval
    return gain is not None and (cell.verdict == "better" or gain[0] >= -part.metric.margin)


def _praise(found: Findings, part: Part, cell: Cell) -> str:
    """What one who looks at this part alone would say for a method; "" where that is nothing."""
    if cell.difference is None:
        return ""
    if no_worse(part, cell):
        return "is no worse" if cell.verdict == "undecided" else f"is {cell.verdict}"
    values = [row.cells[part.metric.id].value.value for row in found.groups[part.id].rows if part.metric.id in row.cells]
    best = min(values) if part.metric.direction == "lower" else max(values)
    return f"has the best figure, {units.quantity(best, part.metric.unit, 4)}," if cell.value.value == best else ""


def cell_of(found: Findings, part: Part, address: str) -> Cell | None:
    """What a part measured of a method; None where nothing was."""
    group = found.groups.get(part.id)
    row = next((row for row in group.rows if row.address == address), None) if group else None
    return row.cells.get(part.metric.id) if row else None


def difference(part: Part, found: Cell) -> str:
    """`−0.412 (−0.45 … −0.37)`, in the unit of the measure."""
    far, unit = found.difference, part.metric.unit
    if far is None:
        return "no difference"
    text = units.signed(far.value, unit, far.low, far.high)
    return text if far.interval is None else f"{text}, 95 % interval {units.interval(*far.interval, unit, far.value)}"


def _costs(curve: Curve, question: Question) -> dict[str, float]:
    """Facts of a method at the length of the question, for all layers; `measured` is 0 where it has none."""
    facts: dict[str, float] = {
        "length": float(question.length), "memory": question.memory, "latency": question.latency,
        "layers": float(question.layers), "measured": float(question.length in curve.points),
    }  # fmt: skip
    at = curve.points.get(question.length, {})
    facts |= {name: question.layers * at[figure] for name, figure in _PER_LAYER.items() if figure in at}
    if "working_bytes" in at:
        facts["working"] = at["working_bytes"]  # layers follow one another
        facts["state"] = facts.get("state", 0.0) if question.causal else 0.0  # what is read at once needs no cache
    return facts


def _words(facts: Mapping[str, float], question: Question) -> dict[str, str]:
    """The facts as people read them."""
    kinds = {"seconds": "s", "latency": "s", "state": "B", "working": "B", "saved": "B", "memory": "B"}
    words = {name: units.quantity(value, "") for name, value in facts.items() if math.isfinite(value)}
    for name, value in facts.items():
        unit = kinds.get(name.removeprefix("exact_"))
        if unit and math.isfinite(value):
            words[name] = units.quantity(value, unit)
    return words | {"length": units.number(question.length, 6)}


def _said(rule: Rule, facts: Mapping[str, float], words: Mapping[str, str], curve: Curve, found: Findings) -> list[Said]:
    if rule.each == "method":
        return [Said(rule.id, string.Template(rule.say).substitute(words), rule.excludes)] if rule.holds(facts) else []
    result = []
    for part in found.parts:
        answer = cell_of(found, part, curve.address)
        if answer is None or answer.difference is None:
            continue
        gain = statistics.improvement(answer.difference, part.metric.direction)
        if gain.interval is None:
            continue
        low, high = gain.interval
        of_part = {"low": low, "high": high, "margin": part.metric.margin, "unlearnt": float(bool(answer.reason))}
        if rule.holds({**facts, **of_part}):
            named = {"part": part.title, "task": part.task, "found": difference(part, answer), "reason": answer.reason}
            result.append(Said(rule.id, string.Template(rule.say).substitute(words, **named), rule.excludes))
    return result
