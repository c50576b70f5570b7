"""Search over settings: the same number of trials for every method, the baseline included. Random here, TPE in `tune_tpe`.

The space is the card's knobs and the problem's; trial 0 is the default setting; trial k of a method is the same on every machine.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterable
from typing import Any, Literal

from instar.bench.record import Record
from instar.cards import Direction, Knob

Search = Literal["random", "tpe"]
Tried = tuple[dict[str, Any], float | None]
"""A setting and its figure on the validation split; None where the trial failed."""


def sample(method: dict[str, Knob], problem: dict[str, Knob], slug: str, index: int) -> dict[str, Any]:
    """The setting of trial `index`: {"method": {…}, "problem": {…}}; empty for trial 0."""
    if index == 0:
        return {}
    generator = random.Random(hashlib.sha256(f"{slug}/{index}".encode()).digest())
    return {
        "problem": {name: _draw(knob, generator) for name, knob in sorted(problem.items())},
        "method": {name: _draw(knob, generator) for name, knob in sorted(method.items())},
    }


def best(trials: Iterable[Record], metric: str, direction: Direction) -> Record | None:
    """The trial with the best validation figure; failed trials never win."""
    good = [t for t in trials if t["status"] == "ok" and metric in t["metrics"]]
    sign = 1.0 if direction == "lower" else -1.0
    return min(good, key=lambda t: (sign * t["metrics"][metric]["value"], t["id"]), default=None)


def _draw(knob: Knob, generator: random.Random) -> Any:
    if knob.choices is not None:
        return generator.choice(knob.choices)
    assert knob.range is not None  # the card's schema says one of the two
    low, high = knob.range
    value = math.exp(generator.uniform(math.log(low), math.log(high))) if knob.scale == "log" else generator.uniform(low, high)
    return round(value) if knob.integer else float(f"{value:.4g}")
