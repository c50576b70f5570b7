"""How the texts and figures of a judgement are written, the same in every output.

Texts come from models and data files: they may be long, steer a terminal, turn the direction of writing or hold half a
character. `line` and `passage` make them safe to print; each output then escapes them in its own language.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from instar.gate.result import Decision, Figure, Measure, Result, Test
from instar.gate.words import counted, percent, printable
from instar.report import units

WORDS: Mapping[Decision, str] = {"pass": "PASS", "fail": "FAIL", "undecided": "UNDECIDED"}
SIGNS: Mapping[Decision, str] = {"pass": "✓", "fail": "✗", "undecided": "?"}
ORDER: Mapping[Decision, int] = {"fail": 0, "undecided": 1, "pass": 2}
FLOWS = {
    "both_right": "right before and now",
    "both_wrong_same": "wrong before and now, the same answer",
    "both_wrong_changed": "wrong before and now, another answer",
}
"""Measures (counts) that together with the broken and the repaired items are all that were compared."""
_ASKED = {"max_nfr": "negative flips", "max_accuracy_drop": "drop of the mean mark", "max_flips": "broken items"}
_COSTS = {
    "size_bytes": "Size",
    "peak_bytes": "Memory, peak",
    "wall_seconds": "Time of the run",
    "cpu_seconds": "Processor time of the run",
}


@dataclass(frozen=True)
class Folded:
    """A passage in two parts, of which the second can be folded away."""

    head: str
    rest: str
    cut: int
    """Characters that were left out."""


def line(text: str, longest: int = 200) -> str:
    """A text on one line, printable and not longer than `longest` characters."""
    words = printable(" ".join(text[: 4 * longest].split()))
    return words if len(words) <= longest and len(text) <= 4 * longest else words[: longest - 1].rstrip() + "…"


def passage(text: str, longest: int = 4000) -> tuple[str, int]:
    """A text with its lines, printable, and how many characters beyond `longest` were left out."""
    return "\n".join(printable(part.expandtabs(4)) for part in text[:longest].splitlines()), max(0, len(text) - longest)


def folded(text: str, longest: int, first: int = 260, lines: int = 5) -> Folded:
    """A passage whose head has at most `first` characters and `lines` lines, cut between words."""
    whole, cut = passage(text, longest)
    head = "\n".join(whole.split("\n")[:lines])
    if len(head) > first:
        end = max(head.rfind(" ", 0, first), head.rfind("\n", 0, first))
        head = head[: end if end > first // 2 else first]
    rest = whole[len(head) :]
    return Folded(head, rest, cut) if rest.strip() or cut else Folded(whole, "", 0)


def figure(found: Figure, unit: str) -> tuple[str, str]:
    """A figure and its interval: ("2.3 %", "1.5 … 3.4 %"). The second is empty where there is none."""
    if unit == "p":
        return probability(found.value), ""
    ends = [v for v in (found.low, found.high) if v is not None]
    if len(ends) < 2 or found.low == found.high:
        return percent(found.value) if unit == "share" else units.number(found.value, 3), ""
    if unit != "share":
        return units.number(found.value, 3), " … ".join(units.number(v, 3) for v in ends)
    size = max(abs(v) for v in (found.value, *ends))
    places = 1 if size >= 0.01 else 2 if size >= 0.001 else 3  # the same for all three
    low, high = (percent(v, places) for v in ends)
    return percent(found.value, places), f"{low.removesuffix(' %')} … {high}"


def around(found: Figure, unit: str) -> str:
    """A figure with its interval in brackets."""
    main, interval = figure(found, unit)
    return f"{main} ({interval})" if interval else main


def probability(p: float) -> str:
    """A p value, no more exact than it can be believed."""
    return "< 0.001" if p < 0.001 else units.number(p, 2)


def unit(test: Test, binary: bool) -> str:
    """The unit of a test's figure and budget."""
    return {"max_nfr": "share", "max_accuracy_drop": "share" if binary else "score", "max_flips": "count"}[test.kind]


def asked(test: Test, result: Result) -> str:
    """The budget in words."""
    what = _ASKED[test.kind]
    if test.kind == "max_nfr":
        what += " beyond the noise floor" if result.floor else ""
    if test.kind == "max_accuracy_drop" and result.binary:
        what = "drop of accuracy"
    return f"{what}, at most {figure(Figure(test.budget), unit(test, result.binary))[0]}"


def sides(result: Result) -> list[tuple[str, list[tuple[str, str]]]]:
    """What is known of both versions: (title, [old, new]), each a figure and its interval; "–" where only one was measured."""
    both, mark = (result.old, result.new), "share" if result.binary else "score"
    title = f"{'Accuracy' if result.binary else 'Mean mark'} ({line(result.metric, 40)})"
    rows = [(title, [figure(side.mean, mark) for side in both])]
    for key in dict.fromkeys(key for side in both for key in side.latency):
        name = "Latency, median" if key == "p50" else f"Latency, {line(key.removeprefix('p'), 8)}th percentile"
        rows.append((name, [_quantity(side.latency.get(key), "s") for side in both]))
    known = {key for side in both for key in side.costs}
    for key in [*(key for key in _COSTS if key in known), *sorted(known - _COSTS.keys())]:
        unit = "bytes" if key.endswith("bytes") else "s" if key.endswith("seconds") else ""
        name = _COSTS.get(key, line(key.replace("_", " "), 40))
        rows.append((name, [_quantity(side.costs.get(key), unit) for side in both]))
    return [*rows, ("Items without an answer", [(units.number(side.missing), "") for side in both])]


def headline(result: Result) -> str:
    """The answer in one sentence, without the word that stands above it."""
    return line(units.sentence(result.headline.removeprefix(f"{WORDS[result.decision]}: ")), 600)


def noise(result: Result) -> str:
    """What is known about noise, as a sentence; empty where nothing is (the cautions say so)."""
    if result.floor is None:
        return ""
    runs = f" ({line(', '.join(result.floor_runs), 120)})" if result.floor_runs else ""
    return f"Noise floor: {around(result.floor, 'share')} of the items flip when the old version is run again{runs}."


def moved(result: Result) -> str:
    """How many items became worse and better: "57 items broke, 64 were repaired"."""
    worse, better = len(result.broken_ids), result.fixed
    if not result.binary:
        return f"{counted(worse, 'mark')} fell, {units.number(better)} rose"
    return f"{counted(worse, 'item')} broke, {units.number(better)} {'was' if better == 1 else 'were'} repaired"


def always(result: Result) -> str:
    """What is said of an item that is no victim of noise; empty without repeated runs."""
    return f"{'right' if result.binary else 'better'} in every earlier run" if result.floor_runs else ""


def measures(result: Result) -> list[tuple[Measure, str, str]]:
    """Every measure with its figure and interval, without the counts that `flows` shows."""
    hidden = FLOWS.keys() if flows(result) else ()
    return [(m, *figure(m.figure, m.unit)) for m in result.measures if m.id not in hidden]


def flows(result: Result) -> list[tuple[str, str, int]]:
    """Where the items went: (id, words, items); empty unless every count is in the record."""
    found = {m.id: int(m.figure.value) for m in result.measures if m.unit == "count" and m.id in FLOWS}
    if not result.binary or found.keys() != FLOWS.keys():
        return []
    rest = [(key, FLOWS[key], found[key]) for key in FLOWS]
    moved = [("broken", "right before, wrong now", len(result.broken_ids)), ("fixed", "wrong before, right now", result.fixed)]
    return [rest[0], *moved, *rest[1:]]


def fact(key: str, value: Any) -> str:
    """A recorded fact as text."""
    if value is None:
        return "unknown"
    if key.endswith("bytes") and isinstance(value, (int, float)) and not isinstance(value, bool):
        return units.quantity(value, "bytes")
    if isinstance(value, Mapping):
        return line(", ".join(f"{k} = {fact(str(k), v)}" for k, v in value.items() if v is not None), 600)
    if isinstance(value, (list, tuple)):
        return line("; ".join(fact("", v) for v in value) or "none", 2000)
    return line(str(value), 600)


def _quantity(value: float | None, unit: str) -> tuple[str, str]:
    return ("–" if value is None else units.quantity(value, unit)), ""
