"""Which arm to take at a given effort: the simplest of those that are level with the best.

A map or a trained head comes into question only where it beats, beyond chance, the arms that need none (no map; both encoders for
each query) at no less effort: what was encoded to fit it could have been put into the index instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from instar.gate.intervals import mean_interval
from instar.upgrade.arms import KEEP, NO_MAP, TWO_ENCODERS
from instar.upgrade.result import Arm

MARGIN = 0.005
"""A difference of recall that nobody would change a system for."""
_PLAIN = (KEEP, NO_MAP, TWO_ENCODERS)


@dataclass(frozen=True)
class Taken:
    """The arm to take."""

    arm: Arm
    stage: int
    sure: bool
    """Whether it beats every simpler arm beyond chance."""


@dataclass(frozen=True)
class Choosing:
    """Arms in the order of their simplicity, and their marks [Q, stages] on the same queries."""

    arms: Sequence[Arm]
    marks: Mapping[str, NDArray[np.float64]]
    blocks: NDArray[np.int64] | None
    level: float

    def at(self, stage: int) -> Taken:
        """The arm to take with that share re-encoded."""
        return self._take(stage, [stage])

    def during(self) -> Taken:
        """The arm to take for the whole way between nothing and everything."""
        last = max(len(arm.curve) for arm in self.arms) - 1
        return self._take(last, list(range(1, last)))

    def better(self, one: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
        """Whether the mean of one lies above that of the other beyond chance."""
        low = mean_interval(one - other, self.blocks, self.level, reach=1.0, draws=1000).low
        return low is not None and low > 0

    def _take(self, stage: int, over: list[int]) -> Taken:
        able = [arm for arm in self.arms if len(arm.curve) > max(over) and not (arm.id == TWO_ENCODERS and over == [0])]
        able = [arm for arm in able if arm.id in _PLAIN or self._worth(arm, over)]
        marks = {arm.id: self.marks[arm.id][:, over].mean(1) for arm in able}
        best = max(able, key=lambda arm: marks[arm.id].mean())
        taken = next(
            a for a in able if marks[best.id].mean() - marks[a.id].mean() < MARGIN or not self.better(marks[best.id], marks[a.id])
        )
        simpler = able[: able.index(taken)]
        return Taken(taken, stage, all(self.better(marks[taken.id], marks[a.id]) for a in simpler))

    def _worth(self, arm: Arm, over: list[int]) -> bool:
        """Whether a map beats every arm without one that costs no more hours."""
        own = self.marks[arm.id][:, over].mean(1)
        for plain in (a for a in self.arms if a.id in _PLAIN):
            places = [min(self._affordable(plain, arm.curve[s].hours, s), len(plain.curve) - 1) for s in over]
            if not self.better(own, self.marks[plain.id][:, places].mean(1)):
                return False
        return True

    @staticmethod
    def _affordable(plain: Arm, hours: float | None, stage: int) -> int:
        """The last stage of an arm that takes no more hours; the same stage where none are known."""
        if hours is None:
            return stage
        fitting = [i for i, point in enumerate(plain.curve) if point.hours is not None and point.hours <= hours + 1e-12]
        return max([stage, *fitting])
