"""NLinear: a linear map of what a window does beside its last value."""

from __future__ import annotations

from torch import nn

from instar.data.panel import Panel
from instar.forecasting.linear import NLinearNetwork
from instar.forecasting.neural import NeuralForecaster


class NLinear(NeuralForecaster):
    """ŷ = W (x − x_L) + b + x_L, the same map for all series.

    Args:
        horizon: H. context: L. lr, batch: of training.

    2·L·H multiply-adds a series. Source: Zeng et al. 2023 (arXiv 2205.13504). Raises ShapeError.
    """

    def __init__(self, horizon: int, *, context: int = 96, lr: float = 2e-3, batch: int = 32) -> None:
        super().__init__(horizon, context, lr=lr, batch=batch)

    def build(self, panel: Panel) -> nn.Module:
        return NLinearNetwork(self.context, self.horizon)
