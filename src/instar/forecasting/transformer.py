"""The point-wise transformer: a token is all series at one time, as in the forecasting literature before patches."""

from __future__ import annotations

from torch import nn

from instar.forecasting.points import PointForecaster
from instar.forecasting.transformer_network import PointTransformer


class Transformer(PointForecaster):
    r"""Encoder and decoder of Vaswani et al. over time steps, the whole horizon in one pass; see `PointTransformer`.

    Args:
        horizon: H. context: L. width, depth, heads, hidden, dropout: of the network. lr, batch: of training.

    It forecasts the series that it learnt from and no others. Quadratic in the context. Sources: Vaswani et al. 2017
    (arXiv 1706.03762), in the form of Zhou et al. 2021 (arXiv 2012.07436). Raises ShapeError.
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
        lr: float = 5e-4,
        batch: int = 32,
    ) -> None:
        sizes = {"width": width, "depth": depth, "heads": heads, "hidden": hidden, "dropout": dropout}
        super().__init__(horizon, context, lr=lr, batch=batch, **sizes)

    def network_of(self, series: int, marks: int) -> nn.Module:
        return PointTransformer(series, self.context, self.horizon, marks=marks, **self.sizes)
