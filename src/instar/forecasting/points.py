"""What forecasters share whose token is all series at one time."""

from __future__ import annotations

import abc
from typing import Any

import torch
from torch import nn

from instar.data.panel import Panel
from instar.forecasting.neural import NeuralForecaster


class PointForecaster(NeuralForecaster):
    """Reads marks of time, and forecasts the series that it learnt from and no others. `sizes` are kept as attributes too."""

    marked: bool = True
    fixed_series: bool = True

    def __init__(self, horizon: int, context: int, *, lr: float, batch: int, **sizes: Any) -> None:
        super().__init__(horizon, context, lr=lr, batch=batch)
        self.sizes = sizes
        for name, value in sizes.items():
            setattr(self, name, value)
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            self.network_of(1, 0)  # refuses what cannot be built before any data are read

    @abc.abstractmethod
    def network_of(self, series: int, marks: int) -> nn.Module:
        """The network for so many series and marks of time: x [B, L, N], marks [B, L + H, m] -> [B, H, N]. Raises ShapeError."""

    def build(self, panel: Panel) -> nn.Module:
        return self.network_of(len(panel.ids), panel.grid.mark_count)
