"""A metric item by item (free of torch, so that reports need none)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Items:
    """A metric item by item: its value is sum(totals) / sum(weights).

    One item is the natural block that a bootstrap may draw (a stretch of text, a sequence, a question), not a byte.
    """

    totals: Sequence[float]
    weights: Sequence[float]

    @property
    def value(self) -> float:
        return sum(self.totals) / sum(self.weights)

    def by(self, groups: Sequence[int]) -> Items:
        """Added up by group: what is cut from one series, or made of one image, is alike, and one item."""
        totals, weights = dict.fromkeys(groups, 0.0), dict.fromkeys(groups, 0.0)
        for group, total, weight in zip(groups, self.totals, self.weights, strict=True):
            totals[group] += total
            weights[group] += weight
        return Items(list(totals.values()), list(weights.values()))


class Floor(NamedTuple):
    """What a predictor without the ability that a problem asks for scores, and what it does: `naming …`."""

    value: float
    what: str

    def holds(self, scores: Sequence[float], direction: str, margin: float) -> str:
        """`both at the floor of naming …: 0.259` where none of two scores is better than it by more than the margin, else ""."""
        sign = 1.0 if direction == "higher" else -1.0
        clear = any(sign * (score - self.value) > margin for score in scores)
        return "" if clear else f"both at the floor of {self.what}: {self.value:.3g}"
