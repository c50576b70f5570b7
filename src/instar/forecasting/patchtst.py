"""PatchTST: attention between the patches of each series."""

from __future__ import annotations

import torch
from torch import nn

from instar.data.panel import Panel
from instar.forecasting.neural import NeuralForecaster
from instar.forecasting.patches import PatchEncoder, PatchNetwork


class PatchTST(NeuralForecaster):
    r"""Each series alone: windows with mean 0 and deviation 1, overlapping patches as tokens, a transformer, one linear head.

    Args:
        horizon: H. context: L. patch, stride: rows of a patch and between two. width, depth, heads, hidden, dropout: of the
            transformer. lr, batch: of training.

    Quadratic in the patches, linear in the series. Source: Nie et al. 2023 (arXiv 2211.14730). Raises ShapeError.
    """

    def __init__(
        self,
        horizon: int,
        *,
        context: int = 96,
        patch: int = 16,
        stride: int = 8,
        width: int = 32,
        depth: int = 2,
        heads: int = 4,
        hidden: int = 64,
        dropout: float = 0.1,
        lr: float = 1e-3,
        batch: int = 32,
    ) -> None:
        super().__init__(horizon, context, lr=lr, batch=batch)
        self.patch, self.stride = patch, stride
        self.width, self.depth, self.heads, self.hidden, self.dropout = width, depth, heads, hidden, dropout
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            self._network()  # refuses what cannot be built before any data are read

    def build(self, panel: Panel) -> nn.Module:
        return self._network()

    def _network(self) -> PatchNetwork:
        encoder = PatchEncoder(self.width, self.depth, self.heads, self.hidden, self.dropout)
        return PatchNetwork(
            encoder,
            self.context,
            self.horizon,
            width=self.width,
            patch=self.patch,
            stride=self.stride,
            dropout=self.dropout,
        )
