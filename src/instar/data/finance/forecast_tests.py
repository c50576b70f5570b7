"""Is one forecast better than another, or was it luck? For losses that follow each other in time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from instar.errors import DataError

Losses = NDArray[np.float64]
_FEWEST = 10


@dataclass(frozen=True)
class Difference:
    """Mean loss of a forecast minus that of another, relative to the latter's; below 0 it is better."""

    relative: float
    low: float
    high: float
    """95 % by blocks."""
    p: float
    """Of Diebold and Mariano, two-sided: the chance of such a difference between equals."""


def diebold_mariano(losses: Losses, against: Losses, horizon: int = 1) -> tuple[float, float]:
    """(statistic, two-sided p) of equal expected loss (Diebold and Mariano 1995), one value of each loss [T] for each time.

        d_t = a_t − b_t        DM = mean(d) / sqrt((γ_0 + 2 Σ_{k<h} γ_k) / T)

    times the small-sample factor of Harvey, Leybourne and Newbold (1997), sqrt((T + 1 − 2h + h(h−1)/T) / T), against Student's
    t with T − 1 degrees of freedom. Where that variance is not above 0, its terms are weighed by 1 − k/h (Bartlett), which
    cannot be negative but is too small for losses that overlap. Losses that are the same give (0, 1).
    """
    d = _differences(losses, against, horizon)
    count, centred = len(d), d - d.mean()
    terms = [(1 if k == 0 else 2) * float(centred[k:] @ centred[: count - k]) / count for k in range(horizon)]
    variance = sum(terms)
    if variance <= 0:
        variance = sum((1 - k / horizon) * term for k, term in enumerate(terms))
    if variance <= 0:
        return 0.0, 1.0
    factor = math.sqrt((count + 1 - 2 * horizon + horizon * (horizon - 1) / count) / count)
    statistic = factor * float(d.mean()) / math.sqrt(variance / count)
    return statistic, float(2 * special.stdtr(count - 1, -abs(statistic)))


def difference(
    losses: Losses, against: Losses, horizon: int = 1, *, block: int = 10, draws: int = 2000, seed: int = 0
) -> Difference:
    """Both tests: Diebold and Mariano's p, and the interval of a circular block bootstrap of mean(a)/mean(b) − 1.

    block: times that are drawn together, at least `horizon`. Raises DataError for fewer than 10 times or unequal lengths.
    """
    d = _differences(losses, against, horizon)
    count, size = len(d), max(block, horizon)
    draw = np.random.default_rng(seed)
    starts = draw.integers(0, count, (draws, -(-count // size)))
    places = ((starts[..., None] + np.arange(size)) % count).reshape(draws, -1)[:, :count]
    base = against[places].mean(1)
    shares = np.divide(d[places].mean(1), base, out=np.zeros(draws), where=base > 0)
    low, high = np.quantile(shares, [0.025, 0.975])
    mean = float(against.mean())
    return Difference(
        float(d.mean()) / mean if mean > 0 else 0.0, float(low), float(high), diebold_mariano(losses, against, horizon)[1]
    )


def _differences(losses: Losses, against: Losses, horizon: int) -> Losses:
    if losses.shape != against.shape or losses.ndim != 1:
        raise DataError(f"Losses of two forecasts are two rows of one length; received {losses.shape} and {against.shape}.")
    if len(losses) < max(_FEWEST, 3 * horizon) or horizon < 1:
        raise DataError(f"{len(losses)} losses say nothing at a horizon of {horizon}; give {max(_FEWEST, 3 * horizon)} at least.")
    if not (np.isfinite(losses).all() and np.isfinite(against).all()):
        raise DataError("A loss is not finite.")
    return losses - against
