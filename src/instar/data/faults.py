"""Faults planted in a recording: what a detector of anomalies is asked for where nobody has labelled any."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from instar.data.panel import Values

KINDS = ("spike", "shift", "burst", "flat")
_ROWS = {"spike": 1, "shift": 12, "burst": 12, "flat": 15}


def plant(values: Values, begin: int, end: int, count: int, seed: int) -> tuple[Values, NDArray[np.bool_]]:
    """`count` faults among the rows from `begin` to `end`, each of one series, and which rows [T] they are in.

    In turn: a spike of 6 deviations, a shift by 2 for 12 rows, noise of 2 deviations for 12 rows, a value held for 15. Each lies
    in a stretch of its own, its place, series and sign drawn by the seed.
    """
    draw = np.random.default_rng(seed)
    found, labels = values.copy(), np.zeros(len(values), dtype=bool)
    deviation = np.nanstd(values[:begin], axis=0)
    length = (end - begin) // count
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        rows = min(_ROWS[kind], max(1, length - 1))
        first = begin + number * length + int(draw.integers(0, length - rows + 1))
        series, sign = int(draw.integers(values.shape[1])), draw.choice([-1.0, 1.0])
        part = found[first : first + rows, series]
        if kind == "flat":
            part[:] = part[0]
        else:
            size = {"spike": 6.0, "shift": 2.0, "burst": 2.0}[kind] * deviation[series]
            part += size * (draw.normal(size=rows) if kind == "burst" else sign)
        labels[first : first + rows] = True
    return found, labels
