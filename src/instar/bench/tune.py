"""Search over settings: the same number of trials for every method, the baseline included. Random here, TPE in `tune_tpe`.

The space is the card's knobs and the problem's; trial 0 is the default setting; trial k of a method is the same on every machine.
Random is quasi-random: a sequence that covers the space evenly however early it ends, from a start of each method's own. Six
independent draws of a rate leave a gap of half its range in one search out of four, and the baseline's may be that one (Bousquet
et al. 2017, "Critical Hyper-Parameters: No Random, No Cry", arXiv 1706.03200).
"""

from __future__ import annotations

import hashlib
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
    knobs = [("problem", name, knob) for name, knob in sorted(problem.items())]
    knobs += [("method", name, knob) for name, knob in sorted(method.items())]
    found: dict[str, Any] = {"problem": {}, "method": {}}
    for (kind, name, knob), step in zip(knobs, _steps(len(knobs)), strict=True):
        start = random.Random(hashlib.sha256(f"{slug}/{kind}/{name}".encode()).digest()).random()
        found[kind][name] = _value(knob, (start + index * step) % 1.0)
    return found


def best(trials: Iterable[Record], metric: str, direction: Direction) -> Record | None:
    """The trial with the best validation figure; failed trials never win."""
    good = [t for t in trials if t["status"] == "ok" and metric in t["metrics"]]
    sign = 1.0 if direction == "lower" else -1.0
    return min(good, key=lambda t: (sign * t["metrics"][metric]["value"], t["id"]), default=None)


def _steps(count: int) -> list[float]:
    """g^-1 … g^-d with g^(d+1) = g + 1: what each coordinate goes on by, modulo 1. In one dimension that is the golden ratio."""
    g = 2.0
    for _ in range(40):  # a contraction: halves the error at least
        g = (1.0 + g) ** (1.0 / (count + 1))
    return [g**-power for power in range(1, count + 1)]


def _value(knob: Knob, share: float) -> Any:
    """The value at a share of the space, from 0 to below 1."""
    if knob.choices is not None:
        return knob.choices[int(share * len(knob.choices))]
    assert knob.range is not None  # the card's schema says one of the two
    low, high = knob.range
    value = low * (high / low) ** share if knob.scale == "log" else low + (high - low) * share
    return round(value) if knob.integer else min(max(float(f"{value:.4g}"), low), high)
