"""Nixtla's statistical models as forecasters: `instar compare forecast --add instar.doors.nixtla:AutoETS`.

They are fitted anew for every window and series, so that a comparison of thousands of windows takes hours: score fewer windows,
the same for every method, with `--set stride=24`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instar import extras
from instar.data.panel import Panel
from instar.errors import ShapeError
from instar.forecasting import windows
from instar.forecasting.repeat_last import Formula
from instar.forecasting.seasonal_naive import SeasonalNaive

_PACKAGE = "statsforecast.models"
_SEASONS = 10
"""Seasons that are read at least."""


class StatsForecast(Formula):
    """A model of the package statsforecast, chosen and fitted on the last max(L, 10 m) rows of each series and window.

    Args:
        horizon: H. context: L. season: m; 0 takes the panel's own.

    Gaps are filled from what precedes them. Where a fit fails or is not finite, the seasonal naive forecast stands in. Raises
    ShapeError, MissingExtraError with the command that installs the package.
    """

    tags = ("any_series",)
    model = ""
    """Its name in `statsforecast.models`."""

    def __init__(self, horizon: int, *, context: int = 96, season: int = 0) -> None:
        if season < 0:
            raise ShapeError(f"A season has at least 1 row, or 0 for the natural one; received {season}.")
        super().__init__(horizon, context)
        self.season, self.rows_of_season = season, max(1, season)
        extras.require(_PACKAGE, "nixtla")

    @property
    def reach(self) -> int:
        return max(self.context, _SEASONS * self.rows_of_season)

    def prepare(self, panel: Panel) -> None:
        """Takes the natural season of the panel."""
        self.rows_of_season = self.season or panel.grid.season

    def forecast(self, panel: Panel, origins: Sequence[int], *, rows: int = 256) -> NDArray[np.float64]:
        found = windows.checked(panel, origins)
        naive = SeasonalNaive(self.horizon, context=self.context, season=self.rows_of_season).forecast(panel, origins)
        for place, origin in enumerate(found):
            window = panel.values[max(0, origin - self.reach) : origin]
            for series in range(len(panel.ids)):
                ahead = self._fitted(window[:, series])
                if ahead is not None:
                    naive[place, :, series] = ahead
        return naive

    def _fitted(self, values: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """The forecast of one series; None where there is none."""
        known = np.flatnonzero(~np.isnan(values))
        if not len(known):
            return None
        last = np.maximum.accumulate(np.where(np.isnan(values), -1, np.arange(len(values))))
        whole = values[last[known[0] :]]
        model: Any = getattr(extras.require(_PACKAGE, "nixtla"), self.model)(season_length=self.rows_of_season)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ahead = np.asarray(model.forecast(y=whole, h=self.horizon)["mean"], dtype=np.float64)
        except Exception:  # whatever a search over models raises on odd series
            return None
        return ahead if np.isfinite(ahead).all() else None


class AutoETS(StatsForecast):
    """Exponential smoothing, its form chosen by AICc (Hyndman et al. 2008)."""

    model = "AutoETS"


class AutoARIMA(StatsForecast):
    """ARIMA, its orders chosen by AICc (Hyndman and Khandakar 2008)."""

    model = "AutoARIMA"


class AutoTheta(StatsForecast):
    """The theta method, its form chosen by error (Fiorucci et al. 2016)."""

    model = "AutoTheta"
