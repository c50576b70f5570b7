"""Any forecaster with a network, with trend and season taken apart before it, or with windows normalised before it."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from instar import catalogue
from instar.data.panel import Panel
from instar.errors import ShapeError
from instar.forecasting.linear import InstanceNorm, MovingAverage
from instar.forecasting.neural import Batch, NeuralForecaster

Way = Literal["trend", "norm"]


class DecomposedNetwork(nn.Module):
    """trend: ŷ = network(x − trend(x)) + W trend(x) + b. norm: ŷ = σ network((x − μ)/σ) + μ. On [B, L, N] -> [B, H, N].

    W starts at 1/L: at birth the trend goes on at its mean.
    """

    def __init__(self, network: nn.Module, way: Way, context: int, horizon: int, kernel: int) -> None:
        super().__init__()
        self.network = network
        self.norm = InstanceNorm() if way == "norm" else None
        self.average = MovingAverage(kernel)
        self.trend = nn.Linear(context, horizon) if way == "trend" else None
        if self.trend is not None:
            nn.init.constant_(self.trend.weight, 1 / context)

    def forward(self, x: Tensor, **beside: Any) -> Tensor:
        if self.norm is not None:
            scaled, mean, deviation = self.norm(x)
            return self.network(scaled, **beside) * deviation + mean
        assert self.trend is not None
        trend = self.average(x)
        return self.network(x - trend, **beside) + self.trend(trend.mT).mT


class Decomposed(NeuralForecaster):
    r"""The survey's wrapper: a method forecasts what is left of the moving average, a linear map forecasts the average.

    Args:
        horizon: H. context: L. method: the address of a forecaster with a network. way: "trend" as above; "norm", windows brought
            to mean 0 and deviation 1 instead, which later papers found to be most of what decomposition gives. kernel: rows of
            the moving average (odd). lr, batch: of training; lr 0 takes the method's own.

    Source: Wen et al. 2023 (arXiv 2202.07125), after Autoformer. Raises ShapeError, UnknownNameError.
    """

    def __init__(
        self,
        horizon: int,
        *,
        context: int = 96,
        method: str = "transformer",
        way: Way = "trend",
        kernel: int = 25,
        lr: float = 0.0,
        batch: int = 32,
    ) -> None:
        address = catalogue.parse(method)
        cls = catalogue.load(address.card)
        if not issubclass(cls, NeuralForecaster) or cls.learn is not NeuralForecaster.learn or issubclass(cls, Decomposed):
            raise ShapeError(f"What is decomposed is a forecaster with a network that learns in one go; {method} is none.")
        if way not in get_args(Way):
            raise ShapeError(f"way is trend or norm; received {way!r}.")
        inner = cls(horizon, **{**address.arguments, "context": context, "batch": batch})
        super().__init__(horizon, context, lr=lr or inner.lr, batch=batch)
        self.method, self.way, self.kernel, self.lr = method, way, MovingAverage(kernel).kernel, lr
        self.covariates, self.marked, self.fixed_series = inner.covariates, inner.marked, inner.fixed_series
        self._inner = [inner]  # in a list, so that its parameters are counted once, as the network's

    @property
    def inner(self) -> NeuralForecaster:
        """The forecaster whose network this is."""
        return self._inner[0]

    def build(self, panel: Panel) -> nn.Module:
        return DecomposedNetwork(self.inner.build(panel), self.way, self.context, self.horizon, self.kernel)

    def varied(self, given: Batch, generator: torch.Generator) -> Batch:
        return self.inner.varied(given, generator)
