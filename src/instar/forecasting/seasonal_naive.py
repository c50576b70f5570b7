"""The last season again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from instar.data.panel import Panel
from instar.errors import ShapeError
from instar.forecasting import windows
from instar.forecasting.repeat_last import Formula


class SeasonalNaive(Formula):
    r"""ŷ_{t+h} = y_{t+h−m⌈h/m⌉}: what stood at the same place of the last whole season.

    Args:
        horizon: H. context: L. season: m, rows of a season; 0 takes the grid's natural one (24 hours, 7 days, 5 working days, 12
            months, …, and 1 for plain numbers, which is `RepeatLast`).

    Reads max(L, m) rows: a season longer than the context is read whole, or there would be none. Where the value a season ago is
    missing, the season before it is taken, and where no season has it, the last value. Linear in W·(L + H)·N, no parameters.
    Raises ShapeError.
    """

    def __init__(self, horizon: int, *, context: int = 96, season: int = 0) -> None:
        if season < 0:
            raise ShapeError(f"A season has at least 1 row, or 0 for the natural one; received {season}.")
        super().__init__(horizon, context)
        self.season = season
        self.rows_of_season = max(1, season)

    @property
    def reach(self) -> int:
        return max(self.context, self.rows_of_season)

    def prepare(self, panel: Panel) -> None:
        """Takes the natural season of the panel."""
        self.rows_of_season = self.season or panel.grid.season

    def forecast(self, panel: Panel, origins: Sequence[int], *, rows: int = 256) -> NDArray[np.float64]:
        found, m = windows.checked(panel, origins), self.rows_of_season
        window = windows.before(panel.values, found, self.reach)
        gap = -window.shape[1] % m
        W, _, N = window.shape
        seasons = torch.cat([window.new_full((W, gap, N), torch.nan), window], dim=1).view(W, -1, m, N)
        known = windows.filled(seasons.transpose(1, 2).reshape(W * m, -1, N)).view(W, m, -1, N)[:, :, -1]
        nowhere = seasons.isnan().all(1)
        known = torch.where(nowhere, windows.filled(window)[:, -1:], known)
        return known[:, torch.arange(self.horizon) % m].numpy().copy()
