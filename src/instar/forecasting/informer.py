"""Informer: the point-wise transformer with attention for few queries and an encoder that halves its length."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from instar.data.panel import Panel
from instar.forecasting.neural import NeuralForecaster
from instar.forecasting.prob_sparse import Distilling, ProbSparseAttention
from instar.forecasting.transformer_network import PointTransformer


class Informer(NeuralForecaster):
    r"""ProbSparse attention, distilling between the layers of the encoder, the whole horizon in one pass of the decoder.

    Args:
        horizon: H. context: L. width, depth, heads, hidden, dropout: of the network. factor: c of `ProbSparseAttention`.
            distil: halve the length between layers of the encoder. lr, batch: of training.

    It forecasts the series that it learnt from and no others. L log L in the context. Source: Zhou et al. 2021 (arXiv
    2012.07436). Raises ShapeError.
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
        factor: float = 5.0,
        distil: bool = True,
        lr: float = 5e-4,
        batch: int = 32,
    ) -> None:
        super().__init__(horizon, context, lr=lr, batch=batch)
        self.width, self.depth, self.heads, self.hidden, self.dropout = width, depth, heads, hidden, dropout
        self.factor, self.distil = factor, distil
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            self._network(1, 0)  # refuses what cannot be built before any data are read

    def build(self, panel: Panel) -> nn.Module:
        return self._network(len(panel.ids), panel.grid.mark_count)

    def _network(self, series: int, marks: int) -> PointTransformer:
        return PointTransformer(
            series,
            self.context,
            self.horizon,
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            hidden=self.hidden,
            dropout=self.dropout,
            marks=marks,
            attention=partial(ProbSparseAttention, factor=self.factor),
            between=Distilling if self.distil else nn.Identity,
        )
