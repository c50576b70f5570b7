"""How many items decide: exact power of the very tests that `instar gate` uses."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import special

from instar.errors import PlanError
from instar.gate import intervals
from instar.gate.intervals import LEVEL

_MOST = 20_000_000
"""More items than this is called none."""


@dataclass(frozen=True)
class Planned:
    """What a plan promises."""

    items: int
    """Items that find the excess with at least the power asked for (and so does every larger number)."""
    power: float
    """Probability of `fail` at that number."""
    to_pass: int | None
    """Items that pass with that power when only the floor flips; None where no number does."""
    budget: float
    detect: float
    floor: float
    wanted: float
    level: float


def plan(*, max_nfr: float, detect: float, power: float = 0.9, floor: float = 0.0, level: float = LEVEL) -> Planned:
    """The number of items at which an excess of budget + `detect` fails with probability `power`.

    max_nfr: the budget. detect: how far above the budget the excess lies that must be found. floor: the share of items that
    flips between two runs of the same version, when such a run is going to be supplied. Raises PlanError.
    """
    if not (0 <= max_nfr < 1 and 0 < detect <= 1 and max_nfr + detect + 2 * floor <= 1 and 0 <= floor < 1):
        raise PlanError(
            "A plan expects 0 ≤ max-nfr < 1, detect > 0 and max-nfr + detect + 2 · floor ≤ 1; "
            f"received {max_nfr:g}, {detect:g} and {floor:g}."
        )
    if not (0 < power < 1 and 0 < level < 1):
        raise PlanError(f"Power and level lie between 0 and 1; received {power:g} and {level:g}.")
    excess = max_nfr + detect
    items = fewest(lambda n: fail_power(n, excess + floor, floor, max_nfr, level), power)
    if items is None:
        raise PlanError(
            f"More than {_MOST:,} items would be needed to find an excess of {detect:g} above the budget {max_nfr:g}."
        )
    to_pass = fewest(lambda n: pass_power(n, floor, floor, max_nfr, level), power) if max_nfr > 0 else None
    return Planned(items, fail_power(items, excess + floor, floor, max_nfr, level), to_pass, max_nfr, detect, floor, power, level)


def fail_power(n: int, up: float, down: float, budget: float, level: float = LEVEL) -> float:
    """Probability that n items fail: share(up) of them flip beyond the floor's and share(down) of them the other way.

    Without a floor (down = 0) the mid-P test of one share, else Tango's test of the difference, summed over what may be seen.
    """
    return _power(n, up, down, lambda u, d: _fails(u, d, n, budget, level, paired=down > 0), rising=True)


def pass_power(n: int, up: float, down: float, budget: float, level: float = LEVEL) -> float:
    """Probability that n items pass."""
    return _power(n, up, down, lambda u, d: _passes(u, d, n, budget, level, paired=down > 0), rising=False)


def needed(up: float, down: float, budget: float, level: float = LEVEL, power: float = 0.9, *, paired: bool) -> int | None:
    """About how many items would decide if the shares are as observed: normal approximation of the score test.

    None where the excess is so near the budget that no realistic number does.
    """
    excess = up - down
    gap = abs(excess - budget)
    if gap == 0:
        return None
    z_level, z_power = (float(special.ndtri(p)) for p in (1 - intervals.tail(level), power))
    under_budget = budget * (1 - budget) + (2 * down if paired else 0.0)
    as_seen = up + down - excess * excess
    found = ((z_level * math.sqrt(max(under_budget, 0.0)) + z_power * math.sqrt(max(as_seen, 0.0))) / gap) ** 2
    return max(1, math.ceil(found)) if found <= _MOST else None


def needed_mean(value: float, error: float, n: int, budget: float, level: float = LEVEL, power: float = 0.9) -> int | None:
    """The same for a mean of scores with the standard error that was seen with n items."""
    gap = abs(value - budget)
    if gap == 0:
        return None
    found = n * (sum(float(special.ndtri(p)) for p in (1 - intervals.tail(level), power)) * error / gap) ** 2
    return max(n + 1, math.ceil(found)) if found <= _MOST else None


def fewest(power: Callable[[int], float], wanted: float) -> int | None:
    """The smallest number whose power is reached, and stays reached: power of counts goes up in saw-teeth."""
    high = 8
    while power(high) < wanted:
        high *= 2
        if high > _MOST:
            return None
    low = high // 2
    while high - low > max(1, high // 400):
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle) >= wanted else (middle, high)
    # From here up, no later tooth may dip below: look through one and a half times as many items.
    step = max(1, high // 400)
    last = max((n for n in range(high, high + high // 2 + 2, step) if power(n) < wanted), default=None)
    return high if last is None else last + step


def _fails(up: np.ndarray, down: np.ndarray, n: int, budget: float, level: float, *, paired: bool) -> np.ndarray:
    alpha = intervals.tail(level)
    alone = np.asarray(intervals.share_above(up, n, budget)) <= alpha
    if not paired:
        return alone
    return alone & (np.asarray(intervals.difference_z(up, down, n, budget)) >= float(special.ndtri(1 - alpha)))


def _passes(up: np.ndarray, down: np.ndarray, n: int, budget: float, level: float, *, paired: bool) -> np.ndarray:
    alpha = intervals.tail(level)
    if not paired:
        return np.asarray(intervals.share_above(up, n, budget)) >= 1 - alpha
    return np.asarray(intervals.difference_z(up, down, n, budget)) <= -float(special.ndtri(1 - alpha))


def _power(n: int, up: float, down: float, decided: Callable[[np.ndarray, np.ndarray], np.ndarray], *, rising: bool) -> float:
    """Sum over the downs of P(downs) · P(enough ups | downs): the decision is monotone in the ups, so its edge is halved for."""
    spread = 9 * math.sqrt(n * down * (1 - down)) + 9
    downs = np.arange(
        max(0, math.floor(n * down - spread)), min(n, math.ceil(n * down + spread)) + 1 if down > 0 else 1, dtype=np.float64
    )
    downs = downs[:: max(1, len(downs) // 400)]  # with very many downs every k-th stands for its neighbours
    weight = _binomial(downs, n, down)
    left = n - downs
    low, high = np.full(downs.shape, -1.0), left + 1  # beyond `high` the ups fail (rising), or no longer pass
    while (active := high - low > 1).any():
        middle = np.where(active, np.floor((low + high) / 2), 0.0)
        beyond = decided(middle, downs) == rising
        high = np.where(active & beyond, middle, high)
        low = np.where(active & ~beyond, middle, low)
    reached = _at_least(high, left, min(1.0, up / (1 - down)))
    return float((weight * (reached if rising else 1 - reached)).sum() / weight.sum())


def _binomial(k: np.ndarray, n: int, p: float) -> np.ndarray:
    if p == 0:
        return (k == 0).astype(np.float64)
    log = special.gammaln(n + 1) - special.gammaln(k + 1) - special.gammaln(n - k + 1)
    return np.exp(log + special.xlogy(k, p) + special.xlog1py(n - k, -p))


def _at_least(k: np.ndarray, n: np.ndarray, p: float) -> np.ndarray:
    inside = (k > 0) & (k <= n)
    value = special.betainc(np.where(inside, k, 1.0), np.where(inside, n - k + 1, 1.0), p)
    return np.where(k <= 0, 1.0, np.where(k > n, 0.0, value))
