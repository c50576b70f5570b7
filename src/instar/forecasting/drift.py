"""The straight line through the first and the last value of the context."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from instar.data.panel import Panel
from instar.forecasting import windows
from instar.forecasting.repeat_last import Formula


class Drift(Formula):
    r"""ŷ_{t+h} = y_t + h · (y_t − y_s) / (t − s), s and t the first and the last row of the context with a value.

    Args:
        horizon: H. context: L, over which the drift is taken.

    The forecast of a random walk with drift. Where the last rows lack values the line goes on over them; with one value or none
    it is level. Linear in W·(L + H)·N, no parameters. Source: Hyndman and Athanasopoulos, Forecasting: Principles and Practice,
    which takes the drift over the whole history. Raises ShapeError.
    """

    def __init__(self, horizon: int, *, context: int = 96) -> None:
        super().__init__(horizon, context)

    def forecast(self, panel: Panel, origins: Sequence[int], *, rows: int = 256) -> NDArray[np.float64]:
        window = windows.before(panel.values, windows.checked(panel, origins), self.context)
        known = (~window.isnan()).int()
        first = known.argmax(1, keepdim=True)
        behind = known.flip(1).argmax(1, keepdim=True)  # rows after the last value
        whole = windows.filled(window)
        slope = (whole[:, -1:] - whole[:, :1]) / (self.context - 1 - behind - first).clamp(min=1)
        ahead = behind + torch.arange(1, self.horizon + 1)[:, None]
        return (whole[:, -1:] + slope * ahead).numpy()
