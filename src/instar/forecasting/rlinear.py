"""RLinear: a linear map of windows that were brought to mean 0 and deviation 1."""

from __future__ import annotations

from torch import nn

from instar.data.panel import Panel
from instar.forecasting.linear import RLinearNetwork
from instar.forecasting.neural import NeuralForecaster


class RLinear(NeuralForecaster):
    """ŷ = σ (W (x − μ)/σ + b) + μ with the mean μ and deviation σ of each window, the same map for all series.

    Args:
        horizon: H. context: L. lr, batch: of training.

    2·L·H multiply-adds a series. Source: Li et al. 2023 (arXiv 2305.10721), without RevIN's affine. Raises ShapeError.
    """

    def __init__(self, horizon: int, *, context: int = 96, lr: float = 2e-3, batch: int = 32) -> None:
        super().__init__(horizon, context, lr=lr, batch=batch)

    def build(self, panel: Panel) -> nn.Module:
        return RLinearNetwork(self.context, self.horizon)
