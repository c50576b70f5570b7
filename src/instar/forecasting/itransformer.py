"""iTransformer: attention between series, feed-forward networks within each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from instar.data.panel import Panel
from instar.errors import ShapeError
from instar.forecasting import windows
from instar.forecasting.itransformer_network import InvertedTransformer, Mixing
from instar.forecasting.neural import Batch, NeuralForecaster


class ITransformer(NeuralForecaster):
    r"""A token is a whole series: ŷ = σ · P(encoder(E x̃)) + μ, see `InvertedTransformer`, which is the module alone.

    Args:
        horizon: H. context: L. width: D. depth, heads, hidden, dropout, norm, attention: of the network.
        share: of the series that a batch trains on, drawn anew for each batch; 1 is all. Forecasts are of all. (The paper trains
            on a fifth where series are many; at least one is drawn.)
        lr, batch: of training.

    Series that were not there in training are forecast as well, and series may be fewer or more. Covariates and time marks are
    tokens. Quadratic in the series, linear in the context. Source: Liu et al. 2024 (arXiv 2310.06625). Raises ShapeError.
    """

    covariates: bool = True

    def __init__(
        self,
        horizon: int,
        *,
        context: int = 96,
        width: int = 64,
        depth: int = 2,
        heads: int = 8,
        hidden: int = 64,
        dropout: float = 0.1,
        norm: bool = True,
        attention: Mixing = "full",
        share: float = 1.0,
        lr: float = 5e-4,
        batch: int = 32,
    ) -> None:
        super().__init__(horizon, context, lr=lr, batch=batch)
        if not 0 < share <= 1:
            raise ShapeError(f"A batch trains on a share of the series above 0 and at most 1; received {share}.")
        self.width, self.depth, self.heads, self.hidden = width, depth, heads, hidden
        self.dropout, self.norm, self.attention, self.share = dropout, norm, attention, share
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            self._network(())  # refuses what cannot be built before any data are read

    def build(self, panel: Panel) -> nn.Module:
        return self._network(panel.known)

    def varied(self, given: Batch, generator: torch.Generator) -> Batch:
        """A share of the series, the same for the windows of a batch."""
        past, target, further = given
        series = past.shape[2]
        if self.share == 1:
            return given
        kept = torch.randperm(series, generator=generator)[: max(1, round(self.share * series))].to(past.device)
        present = further.get("present")
        return past[:, :, kept], target[:, :, kept], {**further, "present": None if present is None else present[:, kept]}

    def attentions(self, panel: Panel, origin: int) -> list[Tensor]:
        """How much each series reads of each other in the forecast at an origin: of each layer [heads, S, S].

        S counts the series, then marks of time, then covariates. Raises ShapeError before `fit` and where attention is not full.
        """
        if not isinstance(self.network, InvertedTransformer):
            raise ShapeError("There is no network yet: call fit first.")
        panel = self._read(panel)
        chosen = windows.checked(panel, [origin])
        past = windows.before(panel.values, chosen, self.context)
        mean, deviation = self._scale(past, self._places(panel))
        x = windows.filled((past - mean) / deviation).float().to(self.device)
        training = self.training
        self.eval()
        try:
            with torch.no_grad():
                _, found = self.network.attentions(x, **self._beside(panel, chosen, past))
        finally:
            self.train(training)
        return [weights[0] for weights in found]

    def _network(self, known: tuple[bool, ...]) -> InvertedTransformer:
        settings: dict[str, Any] = {
            name: getattr(self, name) for name in ("width", "depth", "heads", "hidden", "dropout", "norm", "attention")
        }
        return InvertedTransformer(self.context, self.horizon, known=known, **settings)
