"""Intervals for paired differences, and what may be said from them.

Methods are paired by seed and by item. A difference has two sources of chance: the seeds (Student's t over the paired seed
differences; a percentile bootstrap of few seeds covers far too little) and the items that the test set happens to hold (a
bootstrap over natural blocks). Their variances are added and the degrees of freedom follow Welch and Satterthwaite, so a few
seeds on a large test set and many seeds on a small one are both told honestly.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import special

from instar.items import Items

MINIMUM_SEEDS = 3
"""Below this, a random comparison shows no interval and gets no verdict."""

Verdict = Literal["holds", "does not hold here", "undecided", "partly", "not testable at this scale", "not run"]


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval; `low` is None where too few seeds were run to give one."""

    value: float
    low: float | None
    high: float | None
    seeds: int
    items: int = 0

    @property
    def interval(self) -> tuple[float, float] | None:
        return None if self.low is None or self.high is None else (self.low, self.high)


class NoRatioError(ValueError):
    """Scores of which none is a multiple of another."""


def exact(value: float) -> Estimate:
    """A deterministic figure: its interval is the value."""
    return Estimate(value, value, value, 1)


def student(values: Sequence[float], level: float = 0.95) -> Estimate:
    """Mean of a few independent values with Student's t interval."""
    x = np.asarray(values, dtype=np.float64)
    mean = float(x.mean())
    if len(x) < MINIMUM_SEEDS:
        return Estimate(mean, None, None, len(x))
    half = _t(level, len(x) - 1) * float(x.std(ddof=1)) / math.sqrt(len(x))
    return Estimate(mean, mean - half, mean + half, len(x))


def value(runs: Sequence[Items], level: float = 0.95) -> Estimate:
    """The mean of a metric over seeds with its interval (seeds and items)."""
    zero = [Items([0.0] * len(run.weights), run.weights) for run in runs]
    return paired(runs, zero, level)


def paired(subject: Sequence[Items], against: Sequence[Items], level: float = 0.95, draws: int = 2000) -> Estimate:
    """Subject minus baseline: lists by seed, in the same order, over the same items.

    Where seeds differ in how many items they have, each drew its own: what those add to chance is in the spread of the seeds. A
    difference on one item alone that is the same for all seeds, as of methods without chance, has no interval.
    """
    if len(subject) != len(against) or not subject:
        raise ValueError(f"Paired runs expect equally many seeds, received {len(subject)} and {len(against)}.")
    counts = [len(run.weights) for run in subject]
    if counts != [len(run.weights) for run in against]:
        raise ValueError("Paired runs expect the same items in both.")
    n, shared = min(counts), len(set(counts)) == 1
    differences = np.array([a.value - b.value for a, b in zip(subject, against, strict=True)])
    mean, seeds = float(differences.mean()), len(differences)
    if seeds < MINIMUM_SEEDS:
        return Estimate(mean, None, None, seeds, n)
    by_seed = float(differences.var(ddof=1)) / seeds
    by_item = _item_variance(subject, against, draws) if n > 1 and shared else 0.0
    total = by_seed + by_item
    if total == 0.0:
        known = None if n == 1 and mean else mean
        return Estimate(mean, known, known, seeds, n)
    freedom = total**2 / (by_seed**2 / (seeds - 1) + (by_item**2 / (n - 1) if n > 1 else 0.0))
    half = _t(level, freedom) * math.sqrt(total)
    return Estimate(mean, mean - half, mean + half, seeds, n)


def ratio(subject: Sequence[float], against: Sequence[float], level: float = 0.95) -> Estimate:
    """subject / against from interleaved rounds of one timing run: geometric mean with Student's t interval of the logarithms.

    The interval is the spread of this machine in this run, not of machines.
    """
    logs = student(np.log(np.asarray(subject) / np.asarray(against)).tolist(), level)
    low, high = (None, None) if logs.low is None or logs.high is None else (math.exp(logs.low), math.exp(logs.high))
    return Estimate(math.exp(logs.value), low, high, logs.seeds)


def ratio_of_scores(subject: Sequence[Items], against: Sequence[Items], level: float = 0.95) -> Estimate:
    """subject / against of a metric, lists by seed over the same items: exp of the mean over seeds of log a / b.

    The interval is that of `paired` for the logarithms, and counts the same two sources of chance; that of the items to first
    order. Raises NoRatioError where a score is not above 0.
    """
    if any(run.value <= 0 for run in (*subject, *against)):
        raise NoRatioError("A ratio of scores needs all of them above 0.")
    logs = [_log_ratio(a, b) for a, b in zip(subject, against, strict=True)]
    found = value(logs, level)
    low, high = found.interval or (None, None)
    ends = [None if end is None else math.exp(end) for end in (low, high)]
    return Estimate(math.exp(found.value), ends[0], ends[1], found.seeds, found.items)


def slope(x: Sequence[float], rounds: Sequence[Sequence[float]], level: float = 0.95) -> Estimate:
    """Log-log slope of a cost against what grows, one fit a round."""
    log_x = np.log(np.asarray(x, dtype=np.float64))
    fits = [float(np.polyfit(log_x, np.log(np.asarray(y, dtype=np.float64)), 1)[0]) for y in rounds]
    return exact(fits[0]) if len(set(fits)) == 1 else student(fits, level)


def detectable(seed_sd: float, item_sd: float, seeds: int, items: int, level: float = 0.95, power: float = 0.8) -> float:
    """The smallest true difference that such a comparison would show with that power (normal approximation of the power)."""
    if seeds < MINIMUM_SEEDS:
        return math.inf
    error = math.sqrt(seed_sd**2 / seeds + item_sd**2 / max(items, 1))
    return (_t(level, seeds - 1) + float(special.ndtri(power))) * error


def improvement(difference: Estimate, direction: str) -> Estimate:
    """The difference with its sign turned so that more is better."""
    if direction == "higher":
        return difference
    low, high = difference.low, difference.high
    return Estimate(
        -difference.value, None if high is None else -high, None if low is None else -low, difference.seeds, difference.items
    )


def superior(gain: Estimate, margin: float) -> Verdict:
    """Whether the whole interval of an improvement lies beyond the margin."""
    if gain.interval is None:
        return "undecided"
    return "holds" if gain.interval[0] > margin else "does not hold here" if gain.interval[1] < margin else "undecided"


def equivalent(difference: Estimate, margin: float) -> Verdict:
    """Whether the whole interval of a difference lies inside ±margin."""
    if difference.interval is None:
        return "undecided"
    low, high = difference.interval
    if -margin <= low and high <= margin:
        return "holds"
    return "does not hold here" if low > margin or high < -margin else "undecided"


def together(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict of one claim over several conditions."""
    distinct = set(verdicts)
    if len(distinct) == 1:
        return verdicts[0]
    return "partly" if "holds" in distinct and "does not hold here" in distinct else "undecided"


def _t(level: float, freedom: float) -> float:
    return float(special.stdtrit(freedom, 0.5 + level / 2))


def _log_ratio(a: Items, b: Items) -> Items:
    """Items whose mean is log(a / b), and changes as it does, to first order, when items are drawn anew."""
    n, log = len(a.weights), math.log(a.value / b.value)
    shares = [(run.totals, sum(run.totals), run.weights, sum(run.weights)) for run in (a, b)]
    one, other = ([n * x / total - n * w / weight for x, w in zip(xs, ws, strict=True)] for xs, total, ws, weight in shares)
    return Items([log + x - y for x, y in zip(one, other, strict=True)], [1.0] * n)


def _item_variance(subject: Sequence[Items], against: Sequence[Items], draws: int) -> float:
    """Variance of the seed-mean difference under redrawing items: the same draw for all seeds and both methods."""
    n = len(subject[0].weights)
    arrays = [
        np.array(column, dtype=np.float64).T
        for column in (
            [r.totals for r in subject],
            [r.weights for r in subject],
            [r.totals for r in against],
            [r.weights for r in against],
        )
    ]
    means = []
    for counts in [_kept_draws(n, draws)] if n * draws <= 8_000_000 else _draws(n, draws):
        a, aw, b, bw = (counts.astype(np.float64) @ array for array in arrays)
        some = ((aw > 0) & (bw > 0)).all(axis=1)  # few items may be drawn such that none has a weight, and there is no value
        means.append((a[some] / aw[some] - b[some] / bw[some]).mean(axis=1))
    return float(np.concatenate(means).var(ddof=1))


def _draws(n: int, draws: int) -> Iterator[npt.NDArray[np.int64]]:
    """How often each of n items is drawn, [≤ draws, n] at a time."""
    generator = np.random.default_rng(0)  # the same records must give the same page
    step = max(1, 4_000_000 // n)
    for start in range(0, draws, step):
        yield generator.multinomial(n, np.full(n, 1 / n), size=min(step, draws - start))


@functools.lru_cache(maxsize=8)
def _kept_draws(n: int, draws: int) -> npt.NDArray[np.uint16]:
    """The same in one piece: a page asks for hundreds of intervals over the items of a few problems."""
    return np.concatenate(list(_draws(n, draws))).astype(np.uint16)
