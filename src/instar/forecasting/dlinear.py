"""DLinear: a linear map of the trend and another of what is left."""

from __future__ import annotations

from torch import nn

from instar.data.panel import Panel
from instar.forecasting.linear import DLinearNetwork, MovingAverage
from instar.forecasting.neural import NeuralForecaster


class DLinear(NeuralForecaster):
    r"""ŷ = W_s (x − trend(x)) + b_s + W_t trend(x) + b_t, the same maps for all series.

    Args:
        horizon: H. context: L. kernel: rows of the moving average that is the trend (odd). lr, batch: of training.

    2·2·L·H multiply-adds a series. Source: Zeng et al. 2023 (arXiv 2205.13504). Raises ShapeError.
    """

    def __init__(self, horizon: int, *, context: int = 96, kernel: int = 25, lr: float = 2e-3, batch: int = 32) -> None:
        super().__init__(horizon, context, lr=lr, batch=batch)
        self.kernel = MovingAverage(kernel).kernel

    def build(self, panel: Panel) -> nn.Module:
        return DLinearNetwork(self.context, self.horizon, self.kernel)
