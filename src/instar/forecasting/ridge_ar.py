"""Autoregression by ridge regression: a linear map of the context, the same for all series, in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from instar.data.panel import Panel
from instar.errors import DataError, ShapeError
from instar.forecasting import inputs, windows
from instar.forecasting.repeat_last import Formula
from instar.interfaces import Monitor

_BLOCK = 1 << 22
"""Numbers of windows that are held at a time."""


class RidgeAR(Formula):
    r"""ŷ = A (x − x_L) + x_L with the A [H, L] that is least in

        1/R Σ_r ‖(y_r − x_{r,L}) − A (x_r − x_{r,L})‖² + λ ‖A‖²      A = Cᵀ (G + λ I)⁻¹,   G = XᵀX / R,   C = XᵀY / R

    over all R windows of all series with stride 1, each series divided by its deviation in training so that all weigh alike.

    Args:
        horizon: H. context: L. penalty: λ; towards 0 this is least squares, towards infinity it repeats the last value.

    Every step ahead has coefficients of its own (direct forecasts; none is fed back). Taking the last value off makes an
    autoregression whose coefficients sum to 1: levels may move, and no intercept is needed. Gaps in a context are filled from
    what precedes them; a window of which a target is missing teaches nothing. O(R·L·(L + H) + L³) once, 2·L·H a forecast.
    Raises ShapeError, DataError where no window is followed by H known values.
    """

    map: Tensor

    def __init__(self, horizon: int, *, context: int = 96, penalty: float = 1e-3) -> None:
        super().__init__(horizon, context)
        if not penalty > 0:
            raise ShapeError(f"A ridge has a penalty above 0; received {penalty}.")
        self.penalty = penalty

    def prepare(self, panel: Panel) -> None:
        """A map that repeats the last value."""
        self.register_buffer("map", torch.zeros(self.horizon, self.context, dtype=torch.float64))

    def learn(
        self,
        panel: Panel,
        *,
        steps: int | None = None,
        seed: int = 0,
        monitor: Monitor | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        """The map in closed form, from every window of the panel; steps and seed change nothing."""
        L, H = self.context, self.horizon
        origins = np.array(windows.origins_of(panel, L, H))
        values = panel.values / inputs.scale(panel.values)[1]
        gram, cross, count = torch.zeros(L, L, dtype=torch.float64), torch.zeros(L, H, dtype=torch.float64), 0
        size = max(1, _BLOCK // ((L + H) * values.shape[1]))
        for start in range(0, len(origins), size):
            chosen = origins[start : start + size]
            past, ahead = windows.before(values, chosen, L), windows.after(values, chosen, H)
            kept = windows.seen(past) & ~ahead.isnan().any(1)
            x, y = windows.filled(past).mT[kept], ahead.mT[kept]  # [R, L], [R, H]
            last = x[:, -1:]
            x, y = x - last, y - last
            gram += x.mT @ x
            cross += x.mT @ y
            count += len(x)
        if not count:
            raise DataError(f"No window of {L} rows is followed by {H} known values; choose a smaller horizon or fill the gaps.")
        ridge = gram / count + self.penalty * torch.eye(L, dtype=torch.float64)
        self.prepare(panel)
        self.map.copy_(torch.linalg.solve(ridge, cross / count).mT)

    def forecast(self, panel: Panel, origins: Sequence[int], *, rows: int = 256) -> NDArray[np.float64]:
        if "map" not in self._buffers:
            raise ShapeError("There is no map yet: call fit(frame), or prepare(panel) and learn(panel).")
        found = windows.checked(panel, origins)
        answer = np.empty((len(found), self.horizon, len(panel.ids)))
        for start in range(0, len(found), rows):
            x = windows.filled(windows.before(panel.values, found[start : start + rows], self.context))
            last = x[:, -1:]
            ahead = (x - last).mT @ self.map.cpu().mT
            answer[start : start + rows] = (ahead.mT + last).numpy()
        return answer
