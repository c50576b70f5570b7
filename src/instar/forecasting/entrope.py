"""EntroPE: patches that begin where the next value is uncertain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.bench.fit import fit
from instar.bench.seeds import stream
from instar.data.panel import Panel
from instar.errors import ShapeError
from instar.forecasting import windows
from instar.forecasting.cuts import Cuts, Origins
from instar.forecasting.entrope_network import EntroPENetwork
from instar.forecasting.entropy_model import EntropyModel, Quantiser
from instar.forecasting.entropy_patches import EntropyPatcher, Rule
from instar.forecasting.neural import NeuralForecaster, in_order
from instar.interfaces import Monitor

_RANGE = (0.025, 0.975)


class EntroPE(NeuralForecaster):
    r"""An entropy model learns the series as a language, is frozen, and says where patches begin; see `EntroPENetwork`.

    Args:
        horizon: H. context: L. rule, level, rise, longest: of the patches (`EntropyPatcher`). vocabulary: tokens of values.
        width, depth, heads, hidden, dropout, own: of the network. teaching: share of the steps that go to the entropy model.
        lr, batch: of training.

    The entropy model is taught by AdamW at 1e-3 to predict the next token of windows normalised as in use. The quantiser's ends
    are the 2.5 % and 97.5 % quantiles of the series in training. Once the model is frozen each window is cut once, whatever the
    number of epochs. Encoder and decoder still run over every value of a window: patches are few, but work does not fall.
    Source: EntroPE (arXiv 2509.26157). Raises ShapeError.
    """

    def __init__(
        self,
        horizon: int,
        *,
        context: int = 96,
        rule: Rule = "quantile",
        level: float = 0.9,
        rise: float = 0.0,
        longest: int = 24,
        vocabulary: int = 256,
        width: int = 8,
        depth: int = 1,
        heads: int = 2,
        hidden: int = 32,
        dropout: float = 0.1,
        own: bool = False,
        teaching: float = 0.25,
        lr: float = 5e-3,
        batch: int = 32,
    ) -> None:
        super().__init__(horizon, context, lr=lr, batch=batch)
        if context < 2 or not 0 <= teaching < 1:
            raise ShapeError(f"EntroPE expects a context of 2 or more and 0 ≤ teaching < 1; received {context}, {teaching}.")
        self.rule, self.level, self.rise, self.longest, self.vocabulary = rule, level, rise, longest, vocabulary
        self.width, self.depth, self.heads, self.hidden, self.dropout = width, depth, heads, hidden, dropout
        self.own, self.teaching = own, teaching
        self._cuts: Cuts | None = None
        with torch.random.fork_rng(devices=[]):
            self._network()  # refuses what cannot be built before any data are read

    @property
    def patcher(self) -> EntropyPatcher:
        """What cuts windows: usable alone. Raises ShapeError before `fit`."""
        if not isinstance(self.network, EntroPENetwork):
            raise ShapeError("There is no network yet: call fit(frame) first.")
        return self.network.patcher

    def build(self, panel: Panel) -> nn.Module:
        found = self._network()
        values = (panel.values - self.mean.numpy()) / self.deviation.numpy()
        low, high = np.nanquantile(values, _RANGE) if not np.isnan(values).all() else (-2.0, 2.0)
        if high - low > 1e-6:
            found.patcher.quantiser.set_range(float(low), float(high))
        return found

    def learn(
        self,
        panel: Panel,
        *,
        steps: int | None = None,
        seed: int = 0,
        monitor: Monitor | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        steps = self.steps_for(panel) if steps is None else steps
        taught = min(steps - 1, max(1, round(self.teaching * steps))) if self.teaching and steps > 1 else 0
        stopped = False
        if taught:
            told = _Told(monitor, 0)
            self._teach(panel, taught, seed, told, None if checkpoint is None else checkpoint / "entropy")
            stopped = told.stopped
        if not stopped:
            rest = None if checkpoint is None else checkpoint / "network"
            self._cuts = self._cuts_of(panel, seed)
            try:
                super().learn(panel, steps=steps - taught, seed=seed, monitor=_Told(monitor, taught), checkpoint=rest)
            finally:
                self._cuts = None

    def _cuts_of(self, panel: Panel, seed: int) -> Cuts:
        values = (panel.values - self.mean.cpu().numpy()) / self.deviation.cpu().numpy()
        origins = in_order(np.array(windows.origins_of(panel, self.context, self.horizon)), seed, 0)

        def find(chosen: Origins) -> Tensor:
            assert isinstance(self.network, EntroPENetwork)
            past = windows.filled(windows.before(values, chosen, self.context)).float().to(self.device)
            return self.network.cuts(past)

        return Cuts(find, np.split(origins, range(self.batch, len(origins), self.batch)))

    def _beside(self, panel: Panel, origins: Origins, past: Tensor) -> dict[str, Any]:
        known = {"starts": self._cuts(origins).to(self.device)} if self.training and self._cuts is not None else {}
        return super()._beside(panel, origins, past) | known

    def _teach(self, panel: Panel, steps: int, seed: int, monitor: Monitor, checkpoint: Path | None) -> None:
        """The entropy model: each token of a window from those before it, and the value after it from all."""
        panel = self._read(panel)
        patcher = self.patcher
        origins = np.array(windows.origins_of(panel, self.context, 1))
        values = (panel.values - self.mean.cpu().numpy()) / self.deviation.cpu().numpy()
        size = min(self.batch, len(origins))

        def batch(index: int) -> tuple[Tensor, Tensor]:
            drawn = torch.randint(len(origins), (size,), generator=stream(seed, f"teach/{index}")).numpy()
            rows = windows.filled(windows.before(values, origins[drawn] + 1, self.context + 1)).float().to(self.device)
            past = rows[:, :-1]
            assert isinstance(self.network, EntroPENetwork)
            scaled, mean, deviation = self.network.norm(past)
            following = ((rows[:, 1:] - mean) / deviation).mT.flatten(0, 1)
            scaled = scaled.mT.flatten(0, 1)
            scale = patcher.quantiser.scale(scaled)
            return patcher.quantiser(scaled, scale), patcher.quantiser(following, scale)

        def loss(model: nn.Module, given: tuple[Tensor, Tensor]) -> Tensor:
            tokens, following = given
            return F.cross_entropy(model(tokens).flatten(0, 1), following.flatten())

        patcher.model.requires_grad_(True)
        try:
            fit(
                patcher.model,
                batch,
                loss,
                steps=steps,
                lr=1e-3,
                weight_decay=0.05,
                seed=seed,
                monitor=monitor,
                checkpoint=checkpoint,
            )
        finally:
            patcher.model.requires_grad_(False).eval()

    def _network(self) -> EntroPENetwork:
        patcher = EntropyPatcher(
            EntropyModel(self.vocabulary, self.context),
            Quantiser(self.vocabulary),
            rule=self.rule,
            level=self.level,
            rise=self.rise,
            longest=self.longest,
        )
        sizes: dict[str, Any] = {name: getattr(self, name) for name in ("width", "depth", "heads", "hidden", "dropout", "own")}
        return EntroPENetwork(patcher, self.context, self.horizon, **sizes)


class _Told:
    """A monitor whose steps go on from another stage's, and that remembers whether it was asked to stop."""

    def __init__(self, monitor: Monitor | None, before: int) -> None:
        self.monitor, self.before, self.stopped = monitor, before, False

    def __call__(self, step: int, loss: float) -> bool:
        if self.monitor is not None and self.monitor(self.before + step, loss):
            self.stopped = True
        return self.stopped
