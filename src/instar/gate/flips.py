r"""Flips of items between versions, and what of them is noise.

With marks m_k(i) of K runs of the old version (the first is the one that is compared) and m'(i) of the new one, and a fall
a ↘ b meaning a − b > tolerance (for marks of right and wrong: right before, wrong now):

    negative(i) = [m_1(i) ↘ m'(i)]                          NFR = mean of negative; positive flips likewise
    noise(i) = mean over k ≠ l of [m_k(i) ↘ m_l(i)]         floor = mean of noise
    excess(i) = mean over k of [m_k(i) ↘ m'(i)] − noise(i)  (without repeated runs: negative(i))

If an item is right with probability p before and q now, the expectation of its excess is p(p − q): zero for an unchanged version
however noisy it is. NFR and its relatives: Yan et al. 2021 (2011.09161); for generated text Echterhoff et al. 2024 (2407.09435).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from instar.gate import intervals
from instar.gate.result import Figure

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Flips:
    """What happened to each of N items; all arrays are [N]."""

    before: Floats
    """Mark of the old version (its first run)."""
    after: Floats
    negative: NDArray[np.bool_]
    positive: NDArray[np.bool_]
    excess: Floats
    """Negative flips less the noise, item by item, averaged over the old runs."""
    noise: Floats | None
    """Share of pairs of old runs that fall; None without a repeated run."""
    certain: NDArray[np.bool_]
    """The new version falls below every old run."""
    blocks: NDArray[np.int64] | None

    def of(self, chosen: NDArray[np.bool_] | NDArray[np.int64]) -> Flips:
        """The flips of some items."""
        blocks = None
        if self.blocks is not None:
            blocks = np.unique(self.blocks[chosen], return_inverse=True)[1].astype(np.int64)
        return Flips(
            self.before[chosen],
            self.after[chosen],
            self.negative[chosen],
            self.positive[chosen],
            self.excess[chosen],
            None if self.noise is None else self.noise[chosen],
            self.certain[chosen],
            blocks,
        )

    def __len__(self) -> int:
        return len(self.after)

    @property
    def reach(self) -> float:
        """From the lowest mark to the highest: the furthest that one can fall."""
        return float(max(self.before.max(), self.after.max()) - min(self.before.min(), self.after.min()))


def flips(before: Floats, after: Floats, tolerance: float = 0.0, blocks: NDArray[np.int64] | None = None) -> Flips:
    """Flips from marks before [K, N] (K runs of the old version) and after [N]. Without NaN; O(K² N)."""
    tolerance *= 1 + 1e-9  # 0.8 − 0.7 is a little more than 0.1
    falls = before - after > tolerance
    runs = len(before)
    excess, noise = falls.mean(0), None
    if runs > 1:
        noise = np.zeros(before.shape[1])
        for k, m in itertools.permutations(range(runs), 2):
            noise += before[k] - before[m] > tolerance
        noise /= runs * (runs - 1)
        excess = excess - noise
    if blocks is not None:
        blocks = np.unique(blocks, return_inverse=True)[1].astype(np.int64)
    rises = np.asarray(after - before[0] > tolerance)
    return Flips(before[0], after, np.asarray(falls[0]), rises, excess, noise, np.asarray(falls.all(0)), blocks)


@dataclass(frozen=True)
class Excess:
    """The shares behind a test of the excess, at the effective number of items."""

    figure: Figure
    up: float
    down: float
    effective: float
    paired: bool

    def p(self, budget: float) -> float:
        """One-sided: how likely is as much, if the excess is no more than the budget?"""
        alone = float(intervals.share_above(self.up * self.effective, self.effective, budget))
        if not self.paired:
            return alone
        z = float(intervals.difference_z(self.up * self.effective, self.down * self.effective, self.effective, budget))
        return max(alone, float(special.ndtr(-z)))


def excess(values: Floats, blocks: NDArray[np.int64] | None, paired: bool, level: float) -> Excess:
    """The mean of `values` (in [−1, 1], or in [0, 1] where nothing is subtracted) with its interval.

    paired: whether values are differences (Tango's test), or shares alone (the mid-P test).
    """
    n = intervals.effective(values, blocks, level)
    up, down = float(np.maximum(values, 0).mean()), float(np.maximum(-values, 0).mean())
    low, high = (
        intervals.difference_interval(up * n, down * n, n, level) if paired else intervals.share_interval(up * n, n, level)
    )
    return Excess(Figure(up - down, float(low), float(high)), up, down, n, paired)


def share(values: NDArray[Any], blocks: NDArray[np.int64] | None, level: float) -> Figure:
    """A share of items with its interval."""
    return excess(values.astype(np.float64), blocks, False, level).figure


def difference(values: Floats, blocks: NDArray[np.int64] | None, level: float) -> Figure:
    """The mean of paired differences in {−1, 0, 1} with its interval."""
    return excess(values, blocks, True, level).figure


def mean(values: Floats, blocks: NDArray[np.int64] | None, level: float, reach: float | None = None) -> Figure:
    """The mean of scores with its bootstrap-t interval; `reach`: how far a value can lie from 0."""
    found = intervals.mean_interval(values, blocks, level, reach)
    return Figure(found.value, found.low, found.high)
