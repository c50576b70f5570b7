"""Autoformer: decomposition inside the network, and lagged copies in place of attention."""

from __future__ import annotations

from torch import nn

from instar.forecasting.autoformer_network import AutoformerNetwork
from instar.forecasting.points import PointForecaster


class Autoformer(PointForecaster):
    r"""Trend and season taken apart in every layer; the season by auto-correlation; see `AutoformerNetwork`.

    Args:
        horizon: H. context: L. width, depth, heads, hidden, dropout, kernel, factor: of the network. lr, batch: of training.

    It forecasts the series that it learnt from and no others. T log T in the context. Source: Wu et al. 2021
    (arXiv 2106.13008). Raises ShapeError.
    """

    def __init__(
        self,
        horizon: int,
        *,
        context: int = 96,
        width: int = 64,
        depth: int = 2,
        heads: int = 4,
        hidden: int = 128,
        dropout: float = 0.1,
        kernel: int = 25,
        factor: float = 1.0,
        lr: float = 5e-4,
        batch: int = 32,
    ) -> None:
        sizes = {
            "width": width,
            "depth": depth,
            "heads": heads,
            "hidden": hidden,
            "dropout": dropout,
            "kernel": kernel,
            "factor": factor,
        }
        super().__init__(horizon, context, lr=lr, batch=batch, **sizes)

    def network_of(self, series: int, marks: int) -> nn.Module:
        return AutoformerNetwork(series, self.context, self.horizon, marks=marks, **self.sizes)
