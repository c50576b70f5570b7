"""Scales of series, and what a network may read beside their past: time marks, covariates, which series are there."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from instar.data.panel import Panel, Values
from instar.data.time_grid import Grid
from instar.errors import DataError
from instar.forecasting import windows

FLAT = 1e-9
"""A deviation below this share of the mean is rounding: the series never changes."""


def scale(values: Values) -> tuple[Values, Values]:
    """Mean and deviation of each column [T, N]; 0 and 1 where there is no value, deviation 1 where nothing changes."""
    known = ~np.isnan(values)
    count = np.maximum(known.sum(0), 1)
    mean = np.where(known, values, 0.0).sum(0) / count
    deviation = np.sqrt((np.where(known, values - mean, 0.0) ** 2).sum(0) / count)
    return mean, np.where(deviation <= FLAT * np.abs(mean), 1.0, deviation)


def beside(
    panel: Panel,
    origins: NDArray[np.int64],
    context: int,
    horizon: int,
    past: Tensor,
    scales: tuple[Tensor, Tensor],
    device: torch.device,
) -> dict[str, Any]:
    """`marks` [B, L + H, m], `covariates` [B, L + H, C], `present` bool [B, N]: None where there are none, or all.

    The future of a covariate that is not known ahead is 0 and was never read. Raises DataError where a known one is missing.
    """
    there = windows.seen(past)
    return {
        "marks": marks(panel, origins, context, horizon, device),
        "covariates": _covariates(panel, origins, context, horizon, scales, device) if panel.names else None,
        "present": None if bool(there.all()) else there.to(device),
    }


def marks(panel: Panel, origins: NDArray[np.int64], context: int, horizon: int, device: torch.device) -> Tensor | None:
    """[B, L + H, m]; None where times are plain numbers."""
    table = _marks(panel.grid, -context, len(panel) + horizon)
    return torch.from_numpy(table[origins[:, None] + np.arange(context + horizon)]).to(device) if table.shape[1] else None


@lru_cache(maxsize=8)
def _marks(grid: Grid, first: int, last: int) -> NDArray[np.float32]:
    """Those of the rows from `first` to before `last`: every batch of a training asks for most of them."""
    return grid.marks(np.arange(first, last))


def _covariates(
    panel: Panel, origins: NDArray[np.int64], context: int, horizon: int, scales: tuple[Tensor, Tensor], device: torch.device
) -> Tensor:
    known = torch.tensor(panel.known)
    past = windows.filled(windows.before(panel.covariates, origins, context))
    ahead = windows.after(panel.covariates, origins, horizon)
    if bool((missing := ahead.isnan() & known).any()):
        window, step, column = missing.nonzero()[0].tolist()
        raise DataError(
            f"The covariate {panel.names[column]} is known ahead, but has no value {step + 1} rows after row {origins[window]}."
        )
    mean, deviation = (one.cpu() for one in scales)
    ahead = torch.where(known, (ahead.nan_to_num(0.0) - mean) / deviation, 0.0)
    return torch.cat([(past - mean) / deviation, ahead], dim=1).float().to(device)
