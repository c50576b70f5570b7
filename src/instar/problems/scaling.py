"""Tables of numbers in units of what is trained on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from instar.errors import DataError


def scaled(
    name: str, kind: str, columns: Sequence[str], train: Sequence[NDArray[np.float64]], rows: Sequence[NDArray[np.float64]]
) -> list[NDArray[np.float32]]:
    """Rows [n, C] of tables, each column with mean 0 and variance 1 over all rows of `train`; missing values stay NaN.

    name: of the data; kind: what it calls a column. Raises DataError for a column without a value in training, and for values
    that float32 cannot hold.
    """
    seen = np.concatenate(train)
    if (empty := np.isnan(seen).all(0)).any():
        raise DataError(f"{name}: the {kind} {columns[int(empty.argmax())]} has no value in training. Remove it.")
    with np.errstate(over="ignore", invalid="ignore"):
        mean, deviation = np.nanmean(seen, 0), np.nanstd(seen, 0)
        deviation[deviation <= 1e-9 * np.abs(mean)] = 1.0  # a column that never changes; rounding may make it seem to
        found = [((row - mean) / deviation).astype(np.float32) for row in rows]
    if not np.isfinite([*mean, *deviation]).all() or any(np.isinf(row).any() for row in found):
        raise DataError(f"{name}: values are too large, or too far from those in training, for float32. Scale or remove them.")
    return found
