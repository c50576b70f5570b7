"""Autoformer: decomposition inside the network, and lagged copies in place of attention."""

from __future__ import annotations

import torch
from torch import nn

from instar.data.panel import Panel
from instar.forecasting.autoformer_network import AutoformerNetwork
from instar.forecasting.neural import NeuralForecaster


class Autoformer(NeuralForecaster):
    r"""Trend and season taken apart in every layer; the season by auto-correlation; see `AutoformerNetwork`.

    Args:
        horizon: H. context: L. width, depth, heads, hidden, dropout, kernel, factor: of the network. lr, batch: of training.

    It forecasts the series that it learnt from and no others. T log T in the context. Source: Wu et al. 2021
    (arXiv 2106.13008). Raises ShapeError.
    """

    marked: bool = True
    fixed_series: bool = True

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
        super().__init__(horizon, context, lr=lr, batch=batch)
        self.width, self.depth, self.heads, self.hidden, self.dropout = width, depth, heads, hidden, dropout
        self.kernel, self.factor = kernel, factor
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            self._network(1, 0)  # refuses what cannot be built before any data are read

    def build(self, panel: Panel) -> nn.Module:
        return self._network(len(panel.ids), panel.grid.mark_count)

    def _network(self, series: int, marks: int) -> AutoformerNetwork:
        return AutoformerNetwork(
            series,
            self.context,
            self.horizon,
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            hidden=self.hidden,
            dropout=self.dropout,
            kernel=self.kernel,
            factor=self.factor,
            marks=marks,
        )
