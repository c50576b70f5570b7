"""What a forecast is made of: the last rows before each origin, with gaps filled from what precedes them in the window."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from instar.data.panel import Panel
from instar.errors import DataError


def origins_of(panel: Panel, context: int, horizon: int) -> range:
    """Every origin with a whole context before it and a whole horizon after it. Raises DataError where there is none."""
    found = range(context, len(panel) - horizon + 1)
    if not found:
        raise DataError(
            f"{len(panel)} rows hold no window of {context} rows and {horizon} more that follow; give longer series, or choose a "
            "smaller context or horizon."
        )
    return found


def checked(panel: Panel, origins: Sequence[int]) -> NDArray[np.int64]:
    """Origins as an array. Raises DataError for any that no row precedes or that lies beyond the panel."""
    found = np.asarray(list(origins), dtype=np.int64)
    if len(found) and not (found.min() >= 1 and found.max() <= len(panel)):
        raise DataError(f"Origins lie between 1 and the panel's {len(panel)} rows; received {found.min()} to {found.max()}.")
    return found


def before(values: NDArray[np.float64], origins: NDArray[np.int64], rows: int) -> Tensor:
    """The `rows` rows before each origin, [W, rows, N] float64; NaN stands where a series had not begun."""
    found = torch.from_numpy(values[np.maximum(places := origins[:, None] + np.arange(-rows, 0), 0)])
    return found.masked_fill(torch.from_numpy(places < 0)[:, :, None], torch.nan)


def after(values: NDArray[np.float64], origins: NDArray[np.int64], rows: int) -> Tensor:
    """The `rows` rows from each origin on, [W, rows, N] float64; NaN beyond the last one."""
    places = origins[:, None] + np.arange(rows)
    found = torch.from_numpy(values[np.minimum(places, len(values) - 1)])
    return found.masked_fill(torch.from_numpy(places >= len(values))[:, :, None], torch.nan)


def filled(window: Tensor) -> Tensor:
    """[W, L, N] without NaN: the last value that there is, before the first one the first, and 0 where there is none."""
    gaps = window.isnan()
    if not bool(gaps.any()):
        return window
    row = torch.arange(window.shape[1])[:, None].expand_as(window)
    first = (~gaps).int().argmax(1, keepdim=True)
    place = torch.where(gaps, first, row).cummax(1).values
    return window.gather(1, place).nan_to_num(0.0)


def seen(window: Tensor) -> Tensor:
    """Which series have any value in a window, bool [W, N]."""
    return ~window.isnan().all(1)
