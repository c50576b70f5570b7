"""Informer: the point-wise transformer with attention for few queries and an encoder that halves its length."""

from __future__ import annotations

from functools import partial

from torch import nn

from instar.forecasting.points import PointForecaster
from instar.forecasting.prob_sparse import Distilling, ProbSparseAttention
from instar.forecasting.transformer_network import PointTransformer


class Informer(PointForecaster):
    r"""ProbSparse attention, distilling between the layers of the encoder, the whole horizon in one pass of the decoder.

    Args:
        horizon: H. context: L. width, depth, heads, hidden, dropout: of the network. factor: c of `ProbSparseAttention`.
            distil: halve the length between layers of the encoder. lr, batch: of training.

    It forecasts the series that it learnt from and no others. L log L in the context. Source: Zhou et al. 2021 (arXiv
    2012.07436). Raises ShapeError.
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
        factor: float = 5.0,
        distil: bool = True,
        lr: float = 5e-4,
        batch: int = 32,
    ) -> None:
        sizes = {"width": width, "depth": depth, "heads": heads, "hidden": hidden, "dropout": dropout}
        super().__init__(horizon, context, lr=lr, batch=batch, factor=factor, distil=distil, **sizes)

    def network_of(self, series: int, marks: int) -> nn.Module:
        sizes = dict(self.sizes)
        attention = partial(ProbSparseAttention, factor=sizes.pop("factor"))
        between = Distilling if sizes.pop("distil") else nn.Identity
        return PointTransformer(series, self.context, self.horizon, marks=marks, attention=attention, between=between, **sizes)
