"""Quantiles of a forecast from errors on rows that taught nothing (split conformal prediction).

q_α(t + h) = ŷ(t + h) + quantile_α of y(s + h) − ŷ(s + h) over the origins s of the calibration rows, for each series and step.
Nothing is assumed of their distribution; they are right on average when the future errs as the calibration rows did.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from instar.data.panel import Id, Panel, Values
from instar.errors import DataError, ShapeError
from instar.forecasting import windows
from instar.interfaces import Forecaster

_MOST = 200
"""Origins whose errors are kept, spread evenly."""


def errors(forecaster: Forecaster, panel: Panel, rows: int) -> Tensor:
    """Truth minus forecast, [R, H, N], at origins of the last `rows` rows."""
    first, last = len(panel) - rows, len(panel) - forecaster.horizon
    origins = np.unique(np.linspace(first, last, min(_MOST, last - first + 1)).round().astype(np.int64))
    truth = windows.after(panel.values, origins, forecaster.horizon)
    return truth - torch.from_numpy(forecaster.forecast(panel, origins.tolist()))


def quantiles(found: Tensor, levels: Sequence[float]) -> Values:
    """[H, N, Q] of errors [R, H, N]; where a series has none, those of all series together. Raises ShapeError for bad levels."""
    if not all(0 < level < 1 for level in levels):
        raise ShapeError(f"Quantiles lie between 0 and 1; received {list(levels)}.")
    each = found.nanquantile(torch.tensor(list(levels), dtype=found.dtype), dim=0).permute(1, 2, 0).numpy()
    if np.isnan(each).any():
        every = np.quantile(found[~found.isnan()].numpy(), levels) if not bool(found.isnan().all()) else np.zeros(len(levels))
        each = np.where(np.isnan(each), every, each)
    return each


def spread(forecaster: Forecaster, ids: Sequence[Id], levels: Sequence[float]) -> Values:
    """What is added to the forecasts of these series, [H, N, Q]. Raises DataError where no errors are known of one."""
    if forecaster.errors is None or forecaster.kept is None:
        raise DataError("Quantiles come from errors on calibration rows: fit(frame, calibration=…) with some rows kept for them.")
    places = {name: place for place, name in enumerate(forecaster.kept.ids)}
    if unknown := [name for name in ids if name not in places]:
        raise DataError(f"No errors are known of the series {', '.join(map(str, unknown[:6]))}: they were not fitted.")
    return quantiles(forecaster.errors[:, :, [places[name] for name in ids]], levels)
