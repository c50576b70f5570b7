r"""Intervals and tests for shares of items, and for paired differences of them.

Every bound is an inverted test, so that "the lower bound lies above the budget" and "the test at the budget rejects" are the
same statement; sample sizes are then those of the test that is used.

- one share (k of n): the binomial mid-P test (Lancaster 1961; Agresti & Gottard 2007): half the probability of what was seen
  counts. Closer to its level than the exact test, which is too cautious, and than the normal forms, which are not cautious
  enough for rare flips.
- a paired difference (u items up, d items down, of n): Tango's score test (1998, Statistics in Medicine 17:891).
- items in natural blocks (several questions on one document), and averages over repeated runs: the same tests at the effective
  number of items n · variance(independent items) / variance(blocks), shortened by (z/t)² for few blocks (Korn & Graubard 1998).
- means of scores: a bootstrap-t over blocks, paired (Efron & Tibshirani 1993, ch. 12).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from instar.bench.statistics import Estimate

Floats = NDArray[np.float64]

LEVEL = 0.95
_STEPS = 52
"""Halvings of [0, 1]: down to double precision."""


def tail(level: float) -> float:
    """The probability beyond one bound of a two-sided interval."""
    return (1 - level) / 2


def share_above(k: ArrayLike, n: ArrayLike, budget: ArrayLike) -> Any:
    """Mid-P probability, if the true share were `budget`, of at least `k` of `n`. Effective counts need not be whole."""
    k, n, p = np.broadcast_arrays(*(np.asarray(v, dtype=np.float64) for v in (k, n, budget)))
    return (_at_least(k, n, p) + _at_least(k + 1, n, p)) / 2


def share_interval(k: ArrayLike, n: ArrayLike, level: float = LEVEL) -> tuple[Any, Any]:
    """The mid-P interval of a share: those budgets that neither one-sided test at tail(level) rejects."""
    k, n = np.broadcast_arrays(np.asarray(k, dtype=np.float64), np.asarray(n, dtype=np.float64))
    alpha = tail(level)
    zero, one = np.zeros(k.shape), np.ones(k.shape)
    low = _root(lambda p: share_above(k, n, p) > alpha, zero, one)
    high = _root(lambda p: share_above(k, n, p) > 1 - alpha, zero, one)
    return np.where(k <= 0, 0.0, low), np.where(k >= n, 1.0, high)


def difference_z(up: ArrayLike, down: ArrayLike, n: ArrayLike, budget: ArrayLike) -> Any:
    r"""Tango's statistic z = (u − d − nδ) / √(n(2q + δ(1−δ))) of H0: share(up) − share(down) = δ.

    q is the share of downs that fits best under H0: the larger root of 2n q² + B q + C with B = (2n − u + d)δ − u − d and
    C = −dδ(1−δ). Large values speak for a difference above δ.
    """
    u, d, n, delta = np.broadcast_arrays(*(np.asarray(v, dtype=np.float64) for v in (up, down, n, budget)))
    a = 2 * n
    b = -u - d + (2 * n - u + d) * delta
    c = -d * delta * (1 - delta)
    q = np.maximum((np.sqrt(np.maximum(b * b - 4 * a * c, 0.0)) - b) / (2 * a), 0.0)
    variance = n * (2 * q + delta * (1 - delta))
    difference = u - d - n * delta
    with np.errstate(divide="ignore", invalid="ignore"):
        z = difference / np.sqrt(np.maximum(variance, 0.0))
        certain = np.where(np.abs(difference) < 1e-12, 0.0, np.copysign(np.inf, difference))
    return np.where(variance > 0, z, certain)  # without variance the statistic is 0 / 0 where nothing differs


def difference_interval(up: ArrayLike, down: ArrayLike, n: ArrayLike, level: float = LEVEL) -> tuple[Any, Any]:
    """Tango's interval of share(up) − share(down), which is never above what the ups alone show, nor below what the downs do.

    (The difference is at most share(up). Without this the score test rejects a true difference of 2 % in 5 % of samples of 200
    instead of 2.5 %, where downs are rare.)
    """
    u, d, n = np.broadcast_arrays(*(np.asarray(v, dtype=np.float64) for v in (up, down, n)))
    z = float(special.ndtri(1 - tail(level)))
    least, most = -np.ones(u.shape), np.ones(u.shape)
    low = _root(lambda delta: difference_z(u, d, n, delta) < z, least, most)
    high = _root(lambda delta: difference_z(u, d, n, delta) < -z, least, most)
    ups, _ = share_interval(u, n, level)
    downs, _ = share_interval(d, n, level)
    return np.where(low > 0, np.minimum(low, ups), low), np.where(high < 0, np.maximum(high, -downs), high)


def mcnemar(up: ArrayLike, down: ArrayLike) -> Any:
    """Two-sided exact McNemar test: could as many of the changed items have gone one way by chance?"""
    u, d = np.broadcast_arrays(np.asarray(up, dtype=np.int64), np.asarray(down, dtype=np.int64))
    return np.where(u + d == 0, 1.0, np.minimum(1.0, 2 * special.bdtr(np.minimum(u, d), np.maximum(u + d, 1), 0.5)))


def holm(p: ArrayLike) -> Floats:
    """Holm's adjustment: the family-wise error of any number of tests stays at the level at which these are read."""
    p = np.asarray(p, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)) if len(p) else p
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def effective(values: Floats, blocks: NDArray[np.int64] | None, level: float = LEVEL) -> float:
    """How many independent items in {−1, 0, 1} would tell as much about the mean of `values` [N] as these in their blocks.

    values: in [−1, 1]; fractions are averages over repeated runs. blocks: [N] codes 0 … G−1, or None for single items.
    """
    n, mean = len(values), float(values.mean())
    groups = n if blocks is None else int(blocks.max()) + 1
    independent = float(np.abs(values).sum()) / n - mean * mean  # the variance of −1, 0, 1 with these shares
    if blocks is None:
        if independent <= 0:
            return float(n)
        spread = float(values.var())
        return n * independent / spread if spread > 0 else float(n)
    if groups < 2:
        return 1.0
    shrink = (float(special.ndtri(1 - tail(level))) / float(special.stdtrit(groups - 1, 1 - tail(level)))) ** 2
    if independent <= 0:
        return groups * shrink  # nothing shows how alike the items of a block are: as if wholly
    residual = np.bincount(blocks, weights=values - mean, minlength=groups)
    between = float(residual @ residual) * groups / (groups - 1) / n
    return n * independent / max(between, float(values.var())) * shrink


def mean_interval(
    values: Floats,
    blocks: NDArray[np.int64] | None,
    level: float = LEVEL,
    reach: float | None = None,
    draws: int = 2000,
    most: int = 4000,
) -> Estimate:
    """The mean of a paired score difference [N] with its bootstrap-t interval (see `mean_intervals`)."""
    return mean_intervals(values[:, None], blocks, level, reach, draws, most)[0]


def mean_intervals(
    values: Floats,
    blocks: NDArray[np.int64] | None,
    level: float = LEVEL,
    reach: float | None = None,
    draws: int = 2000,
    most: int = 4000,
) -> list[Estimate]:
    """The means of several paired score differences [N, M] of the same items, each with its bootstrap-t interval over blocks.

    More than `most` blocks are first joined at random into as many: the spread of the mean is the same and the cost bounded.
    Where so few blocks differ from the rest that the bootstrap often draws none of them, it knows nothing of the spread: then
    the interval is that of shares, since differences in [−reach, reach] never vary more than as many in {−reach, 0, reach}
    with the same falls and rises. Without `reach` there is none. All columns are drawn with the same draws.
    """
    n, means = len(values), values.mean(0)
    generator = np.random.default_rng(0)  # the same predictions must give the same page
    codes = np.arange(n) if blocks is None else blocks
    apart = groups = int(codes.max()) + 1
    if groups > most:
        codes = generator.permutation(np.arange(groups) % most)[codes]
        groups = most
    if groups < 2:
        return [Estimate(float(mean), None, None, 1, n) for mean in means]
    total: Floats = np.stack([np.bincount(codes, weights=column, minlength=groups) for column in values.T], 1).astype(np.float64)
    size: Floats = np.bincount(codes, minlength=groups).astype(np.float64)
    least = 1e-12 * np.abs(values).max(0)  # no spread, but for rounding
    error = np.sqrt(((total - means * size[:, None]) ** 2).sum(0)) / n
    low, high = np.full(len(means), -np.inf), np.full(len(means), np.inf)
    if (spread := error > least).any():
        low[spread], high[spread] = _studentised(
            total[:, spread], size, means[spread], least[spread], tail(level), draws, generator
        )
    return [
        Estimate(float(mean), float(mean - h * e), float(mean - lo * e), 1, n)
        if np.isfinite(lo) and np.isfinite(h)
        else _as_shares(column, float(mean), reach, apart, level)
        for column, mean, e, lo, h in zip(values.T, means, error, low, high, strict=True)
    ]


def _as_shares(values: Floats, mean: float, reach: float | None, apart: int, level: float) -> Estimate:
    """The interval of shares with the same falls and rises, where the bootstrap knows nothing."""
    if not reach:
        return Estimate(mean, None, None, 1, len(values))
    up, down = (float(np.maximum(sign * values, 0).mean()) / reach * apart for sign in (1, -1))
    below, above = (float(bound) * reach for bound in difference_interval(up, down, apart, level))
    return Estimate(mean, below, above, 1, len(values))


def _studentised(
    total: Floats, size: Floats, means: Floats, least: Floats, alpha: float, draws: int, generator: np.random.Generator
) -> tuple[Floats, Floats]:
    """For each column of total [G, M] the quantiles alpha and 1 − alpha of (drawn mean − mean) / its standard error.

    Infinite where draws have no spread.
    """
    groups, columns = total.shape
    parts = []
    step = max(1, 4_000_000 // (groups + 4 * columns))
    for start in range(0, draws, step):
        rows = min(step, draws - start)
        counts = generator.multinomial(groups, np.full(groups, 1 / groups), size=rows).astype(np.float64)
        sizes = (counts @ size)[:, None]
        drawn = (counts @ total) / sizes
        squares = counts @ (total * total) - 2 * drawn * (counts @ (total * size[:, None]))
        squares += drawn * drawn * (counts @ (size * size))[:, None]
        spread = np.sqrt(np.maximum(squares, 0.0)) / sizes
        with np.errstate(divide="ignore", invalid="ignore"):
            parts.append((drawn - means) / np.where(spread * groups > least, spread, 0.0))
    t_values = np.concatenate(parts)
    found = np.full((2, columns), np.inf)
    found[0] = -np.inf
    for place, column in enumerate(t_values.T):
        if len(known := column[~np.isnan(column)]):
            found[:, place] = np.quantile(known, [alpha, 1 - alpha], method="inverted_cdf")
    return found[0], found[1]


def _at_least(k: Floats, n: Floats, p: Floats) -> Any:
    """P(X ≥ k) of a binomial, continued to counts that are not whole."""
    inside = (k > 0) & (k <= n)
    value = special.betainc(np.where(inside, k, 1.0), np.where(inside, n - k + 1, 1.0), p)
    return np.where(k <= 0, 1.0, np.where(k > n, 0.0, value))


def _root(above: Any, low: Floats, high: Floats) -> Floats:
    """Where a predicate that is False and then True turns, by halving; `above(x)` says that the root lies at or below x."""
    low, high = low.copy(), high.copy()
    for _ in range(_STEPS):
        middle = (low + high) / 2
        right = above(middle)
        high = np.where(right, middle, high)
        low = np.where(right, low, middle)
    return (low + high) / 2
