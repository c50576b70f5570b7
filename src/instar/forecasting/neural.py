"""What forecasters with a network share: scaling, windows as batches, training, and forecasts a few origins at a time."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from instar.bench.fit import fit
from instar.bench.seeds import stream
from instar.data.panel import Panel
from instar.errors import DataError, DivergedError, ShapeError
from instar.forecasting import inputs, windows
from instar.interfaces import Forecaster, Monitor

_EPOCHS, _MOST_STEPS = 10, 2000
Batch = tuple[Tensor, Tensor, dict[str, Any]]
"""Past [B, L, N] and what follows [B, H, N], NaN where missing, both in units of training; and what else the network reads."""


class NeuralForecaster(Forecaster):
    """A network between scaled windows and scaled forecasts.

    Each series has mean 0 and deviation 1 over the rows that were learnt from; a series that has no value there, over its own
    context. Covariates go by their names, in any order. Gaps in a context are filled from what precedes them; missing targets are
    not learnt from. Training: Adam on the mean squared error of all windows with stride 1, a new order each epoch, warm-up and
    cosine decay to a tenth of `lr`.

    A method says what its network is (`build`), and may vary what training sees (`varied`).
    """

    mean: Tensor
    deviation: Tensor
    learnt: Tensor
    """Bool [N], which series had a value when the scales were taken."""
    marked: bool = False
    """Whether the network reads marks of time; those that read covariates do."""
    fixed_series: bool = False
    """Whether it forecasts the series that it was built for and no others."""

    def __init__(self, horizon: int, context: int, *, lr: float, batch: int) -> None:
        if min(horizon, context, batch) < 1 or not lr > 0:
            raise ShapeError(
                "A forecaster expects a horizon, a context and a batch of at least 1 and lr > 0; received "
                f"{horizon}, {context}, {batch} and {lr}."
            )
        super().__init__(horizon, context)
        self.lr = self.rate = lr
        self.batch = batch
        self.network: nn.Module | None = None
        self.ids: tuple[int | str, ...] = ()
        self.names: tuple[str, ...] = ()
        self.known: tuple[bool, ...] = ()

    @abc.abstractmethod
    def build(self, panel: Panel) -> nn.Module:
        """The network: x [B, L, N] without gaps, and where `covariates` is set what `inputs.beside` gives, to [B, H, N]."""

    def varied(self, given: Batch, generator: torch.Generator) -> Batch:
        """What training sees of a batch: all of it."""
        return given

    def loss(self, given: Batch) -> Tensor:
        """Mean squared error over the targets that are known."""
        past, target, further = given
        assert self.network is not None
        known = ~target.isnan()
        error = torch.where(known, self.network(past, **further) - target.nan_to_num(0.0), 0.0)
        return error.square().sum() / known.sum().clamp(min=1)

    def prepare(self, panel: Panel) -> None:
        """A fresh network, and the scale of each series and covariate."""
        self.ids, self.names, self.known = panel.ids, panel.names, panel.known
        self.register_buffer("learnt", torch.from_numpy(~np.isnan(panel.values).all(0)))
        mean, deviation = inputs.scale(panel.values)
        self.register_buffer("mean", torch.from_numpy(mean))
        self.register_buffer("deviation", torch.from_numpy(deviation))
        if self.covariates:
            mean, deviation = inputs.scale(panel.covariates[: len(panel)])
            self.register_buffer("covariate_mean", torch.from_numpy(mean))
            self.register_buffer("covariate_deviation", torch.from_numpy(deviation))
        self.network = self.build(panel)

    def learn(
        self,
        panel: Panel,
        *,
        steps: int | None = None,
        seed: int = 0,
        monitor: Monitor | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        if self.network is None:
            raise ShapeError("Call prepare(panel) before learn, or fit(frame), which calls both.")
        panel = self._read(panel)
        origins = np.array(windows.origins_of(panel, self.context, self.horizon))
        values = (panel.values - self.mean.cpu().numpy()) / self.deviation.cpu().numpy()
        size = min(self.batch, len(origins))
        order: dict[int, NDArray[np.int64]] = {}

        def batch(index: int) -> Batch:
            epoch, place = divmod(index, len(origins) // size)
            if epoch not in order:
                order.clear()
                order[epoch] = in_order(origins, seed, epoch)
            chosen = order[epoch][place * size : (place + 1) * size]
            past = windows.before(values, chosen, self.context)
            target = windows.after(values, chosen, self.horizon).float().to(self.device)
            given = windows.filled(past).float().to(self.device), target, self._beside(panel, chosen, past)
            return self.varied(given, stream(seed, f"seen/{index}"))

        def loss(model: nn.Module, given: Batch) -> Tensor:
            return self.loss(given)

        fit(
            self,
            batch,
            loss,
            steps=self.steps_for(panel) if steps is None else steps,
            lr=self.rate,
            weight_decay=0.0,
            betas=(0.9, 0.999),
            seed=seed,
            monitor=monitor,
            checkpoint=checkpoint,
        )

    def forecast(self, panel: Panel, origins: Sequence[int], *, rows: int = 256) -> NDArray[np.float64]:
        if self.network is None:
            raise ShapeError("There is no network yet: call fit(frame), or prepare(panel) and learn(panel).")
        if rows < 1:
            raise ShapeError(f"Origins are computed one at a time or more; received rows={rows}.")
        panel = self._read(panel)
        places = self._places(panel)
        found, network = windows.checked(panel, origins), self.network
        answer = np.empty((len(found), self.horizon, len(panel.ids)))
        training = self.training
        self.eval()
        try:
            for start in range(0, len(found), rows):
                chosen = found[start : start + rows]
                past = windows.before(panel.values, chosen, self.context)
                mean, deviation = self._scale(past, places)
                past = (past - mean) / deviation
                with torch.no_grad():
                    x = windows.filled(past).float().to(self.device)
                    ahead = network(x, **self._beside(panel, chosen, past))
                answer[start : start + rows] = (ahead.double().cpu() * deviation + mean).numpy()
        finally:
            self.train(training)
        if not np.isfinite(answer).all():
            raise DivergedError("The forecast is not finite: values lie too far from those in training, or training diverged.")
        return answer

    def steps_for(self, panel: Panel) -> int:
        """Ten epochs, and no more than 2,000 steps."""
        count = len(windows.origins_of(panel, self.context, self.horizon))
        return min(_MOST_STEPS, _EPOCHS * (count // min(self.batch, count)))

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.mean.device

    def _beside(self, panel: Panel, origins: NDArray[np.int64], past: Tensor) -> dict[str, Any]:
        if not self.covariates:
            return {"marks": inputs.marks(panel, origins, self.context, self.horizon, self.device)} if self.marked else {}
        scale = self.get_buffer("covariate_mean"), self.get_buffer("covariate_deviation")
        return inputs.beside(panel, origins, self.context, self.horizon, past, scale, self.device)

    def _read(self, panel: Panel) -> Panel:
        """The panel with the covariates as they were learnt: their order, and which are known ahead. Raises DataError."""
        if self.fixed_series and panel.ids != self.ids:
            raise DataError(
                f"{type(self).__name__} mixes the series that it was built for ({', '.join(map(str, self.ids[:6]))}, in this "
                f"order) and takes no others; received {', '.join(map(str, panel.ids[:6]))}."
            )
        if panel.names and not self.covariates:
            raise DataError(f"{type(self).__name__} reads no covariates; received {', '.join(panel.names[:6])}.")
        if (panel.names, panel.known) == (self.names, self.known):
            return panel
        places = {name: place for place, name in enumerate(panel.names)}
        if places.keys() != set(self.names):
            raise DataError(
                f"It learnt the covariates {', '.join(self.names[:6]) or '(none)'} and goes by their names; received "
                f"{', '.join(panel.names[:6]) or 'none'}. Give those that it learnt."
            )
        covariates = panel.covariates[:, [places[name] for name in self.names]]
        return dataclasses.replace(panel, covariates=covariates, names=self.names, known=self.known)

    def _places(self, panel: Panel) -> list[int]:
        """The place of each series among those learnt, −1 where it is none: what had no value then has no scale."""
        places = {name: place for place, (name, there) in enumerate(zip(self.ids, self.learnt.tolist(), strict=True)) if there}
        return [places.get(name, -1) for name in panel.ids]

    def _scale(self, past: Tensor, places: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Mean and deviation, [1 or W, 1, N]: those of training; of a series without a value there, those of its context."""
        mean, deviation = (buffer.cpu()[list(places)][None, None] for buffer in (self.mean, self.deviation))
        new = torch.tensor([place < 0 for place in places])
        if not bool(new.any()):
            return mean, deviation
        own = past.nanmean(1, keepdim=True).nan_to_num(0.0)
        spread = (past - own).square().nanmean(1, keepdim=True).sqrt().nan_to_num(0.0)
        spread = torch.where(spread <= inputs.FLAT * own.abs(), 1.0, spread)
        return torch.where(new, own, mean), torch.where(new, spread, deviation)


def in_order(origins: NDArray[np.int64], seed: int, epoch: int) -> NDArray[np.int64]:
    """The windows of a training as one of its epochs takes them."""
    return origins[torch.randperm(len(origins), generator=stream(seed, f"epoch/{epoch}")).numpy()]
