"""Forecasts of several series: chronological splits, every window of the test span scored, the same look-back for all."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from instar import catalogue, formula
from instar.catalogue import Build
from instar.data.forecast_sets import forecast_set
from instar.data.panel import Panel, Values
from instar.errors import DataError, ShapeError
from instar.forecasting import inputs, residuals, windows
from instar.forecasting.mixer_encoder import MixerEncoder
from instar.forecasting.neural import NeuralForecaster
from instar.interfaces import Data, Forecaster, Items, Mixer, Monitor, Problem, Workload
from instar.problems.kept import digest

LEVELS = tuple(round(0.1 * level, 1) for level in range(1, 10))
_TIMED = 64
_PARTS = ("train", "valid", "test")


@dataclass(frozen=True)
class Span:
    """Windows whose targets lie in one part of the rows."""

    panel: Panel
    """Nothing after the part is there."""
    origins: range
    calibration: Panel
    """The rows up to the end of the part before: where the errors come from that quantiles are made of."""
    first: int
    """The first row of the part before; where that is training, the first one that a whole context precedes."""
    season_error: Values
    """[N], the mean absolute error of the seasonal naive forecast over the rows of training: what MASE divides by."""


class ForecastProblem(Problem):
    """mse, mae, mase and pinball loss of the next `horizon` rows, over every window of the test span with stride 1.

    Args:
        data: ETTh1, ETTh2, ETTm1, exchange_rate, illness, los_speed, eeg (ships with matplotlib; the default), or your own table.
        time, target, covariates: columns of a table, see `data.forecast_sets.forecast_set`.
        horizon: H. context: L, the look-back of every method. season: rows of a season; 0 takes the natural one.
        batch: windows a step. stride: rows between the windows that are scored; 1 is all, more is for methods that are fitted
            anew for each.

    Each series has mean 0 and deviation 1 over the rows of training; errors are in these units. An item is a block of
    neighbouring windows that begin within H rows of each other: they overlap and tell the same. The pinball loss is the mean over
    the quantiles 0.1 … 0.9, made in the same way for every method from errors on the span before (see `forecasting.residuals`):
    for test on validation, which taught nothing; for validation on training, so that it flatters there. Missing truth is not
    scored. Raises DataError, ShapeError, UnknownNameError.
    """

    accepts: ClassVar = {Forecaster: "forecaster", Mixer: "encoder"}

    def __init__(
        self,
        *,
        data: str | None = None,
        time: str | None = None,
        target: str | list[str] | None = None,
        covariates: list[str] | None = None,
        horizon: int = 24,
        context: int = 96,
        season: int = 0,
        batch: int = 32,
        stride: int = 1,
    ) -> None:
        if min(horizon, context, batch, stride) < 1 or season < 0:
            raise ShapeError(
                "forecast expects a horizon, a context, a batch and a stride of at least 1 and a season of at least 0; received "
                f"{horizon}, {context}, {batch}, {stride} and {season}."
            )
        self.data, self.time, self.target, self.covariates = data, time, target, covariates
        self.horizon, self.context, self.season, self.batch = horizon, context, season, batch
        self.stride = stride
        self.tokens_per_step = batch * context

    @property
    def _block(self) -> int:
        """Windows of an item."""
        return -(-self.horizon // self.stride)

    def load(self, seed: int) -> Data:
        """The same splits for every seed."""
        found = forecast_set(self.data, time=self.time, target=self.target, covariates=self.covariates or (), season=self.season)
        self.season, H = found.season, self.horizon
        bounds = [0, found.train, found.valid, found.last]
        for part, begin, end in zip(("training", "validation", "test"), bounds, bounds[1:], strict=False):
            needed = H + (self.context if begin == 0 else 0)
            if end - begin < needed:
                raise DataError(
                    f"{found.name}: the {part} span has {end - begin} rows; a window needs {needed}. Give more rows, or choose a "
                    "smaller horizon or context."
                )
        mean, deviation = inputs.scale(found.panel.values[: found.train])
        scaled = dataclasses.replace(found.panel, values=(found.panel.values - mean) / deviation)
        if (empty := np.isnan(scaled.values[: found.train]).all(0)).any():
            raise DataError(f"{found.name}: the series {scaled.ids[int(empty.argmax())]} has no value in the training span.")
        error = season_error(scaled.values[: found.train], found.season)
        train, valid, test = (scaled.until(end) for end in bounds[1:])
        splits = (
            Span(train, windows.origins_of(train, self.context, H), train, self.context, error),
            Span(valid, range(found.train, found.valid - H + 1, self.stride), train, self.context, error),
            Span(test, range(found.valid, found.last - H + 1, self.stride), valid, found.train, error),
        )
        facts = {
            **{"name": found.name, "item": f"block of {self._block} windows", "series": len(scaled.ids), "rows": len(scaled)},
            **{f"{part}_items": -(-len(split.origins) // self._block) for part, split in zip(_PARTS, splits, strict=True)},
            **{"test_windows": len(splits[2].origins), "season": found.season, "horizon": H},
            "missing_values": int(np.isnan(scaled.values).sum()),
        }
        sha = digest(
            [
                found.name,
                str(bounds),
                str((H, self.stride)),
                str(self.season),
                *map(str, scaled.ids),
                scaled.values,
                scaled.covariates,
            ]
        )
        return Data(splits[0], splits[1], splits[2], sha, facts)

    def forecaster(self, build: Build, data: Data, seed: int) -> Forecaster:
        """The method, for this horizon, look-back, season and batch, where it takes them."""
        takes = inspect.signature(build.cls).parameters
        given = {name: getattr(self, name) for name in ("season", "batch") if name in takes}
        made: Forecaster = build(self.horizon, context=self.context, **given)
        made.prepare(_readable(made, data.train.panel))
        return made

    def encoder(self, build: Build, data: Data, seed: int) -> MixerEncoder:
        """A mixer between the patches of each series."""
        made = MixerEncoder.around(build, self.horizon, self.context, batch=self.batch)
        made.prepare(_readable(made, data.train.panel))
        return made

    def fit(
        self,
        subject: Forecaster,
        train: Span,
        *,
        steps: int,
        seed: int,
        monitor: Monitor | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        """Steps of windows in random order; a formula has none, and tells that all of them are done."""
        subject.learn(_readable(subject, train.panel), steps=steps, seed=seed, monitor=monitor, checkpoint=checkpoint)
        if not subject.trained and monitor is not None:
            for step in range(steps):
                if monitor(step + 1, 0.0):
                    break

    def evaluate(self, subject: Forecaster, split: Span) -> dict[str, Items]:
        """Every window, by blocks of those that overlap."""
        panel, before = _readable(subject, split.panel), _readable(subject, split.calibration)
        rows = min(len(before) - split.first, len(split.origins) + self.horizon - 1)
        offsets = residuals.quantiles(residuals.errors(subject, before, rows), LEVELS)
        found: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in ("mse", "mae", "mase", "pinball")}
        for start in range(0, len(split.origins), self._block):
            chosen = split.origins[start : start + self._block]
            truth = windows.after(panel.values, np.array(chosen), self.horizon).numpy()
            errors = truth - subject.forecast(panel, chosen)
            for name, (total, weight) in _losses(errors, offsets, split.season_error).items():
                found[name][0].append(total)
                found[name][1].append(weight)
        return {name: Items(totals, weights) for name, (totals, weights) in found.items()}

    def costs(self, subject: Forecaster) -> dict[str, float]:
        """FLOPs of one forecast of all series, by the card's formula."""
        card = catalogue.of(type(subject))
        if card is None or card.cost is None or (isinstance(subject, MixerEncoder) and subject.mixing.card.slug != "softmax"):
            return {}
        given = {name: getattr(subject, name) for name in inspect.signature(type(subject)).parameters}
        series = len(subject.ids) if isinstance(subject, NeuralForecaster) else 1
        sizes = {"N": series, "L": subject.context, "P": subject.horizon}
        return {"forecast_flops": formula.evaluate(card.cost.flops, catalogue.variables(type(subject), given, **sizes))}

    def workloads(self) -> Iterator[Workload]:
        """Forecasts from some origins at once."""
        yield Workload("forecast_seconds", self._forecasts, units=_TIMED)

    def _forecasts(self, subject: Forecaster) -> Callable[[], object]:
        split = self.load(0).test
        panel, origins = _readable(subject, split.panel), [split.origins[i % len(split.origins)] for i in range(_TIMED)]
        return lambda: subject.forecast(panel, origins)


def season_error(values: Values, season: int) -> Values:
    """[N]: mean |y_t − y_{t−m}| of each series over the rows [T, N]; NaN where nothing is known or nothing changes."""
    if len(values) <= season:
        return np.full(values.shape[1], np.nan)
    far = np.abs(values[season:] - values[:-season])
    count = (~np.isnan(far)).sum(0)
    mean = np.nansum(far, axis=0) / np.maximum(count, 1)
    return np.where((count == 0) | (mean <= inputs.FLAT), np.nan, mean)


def pinball(errors: NDArray[np.float64], offsets: Values, levels: Sequence[float]) -> NDArray[np.float64]:
    """Mean over the levels α of max(α u, (α − 1) u), u = truth − quantile; errors [W, H, N], offsets [H, N, Q]."""
    left = errors[..., None] - offsets
    level = np.asarray(levels)
    found: NDArray[np.float64] = np.maximum(level * left, (level - 1) * left).mean(-1)
    return found


def _losses(errors: NDArray[np.float64], offsets: Values, season_error: Values) -> dict[str, tuple[float, float]]:
    """Sum and count of each loss over what is known."""
    absolute = np.abs(errors)
    each = {"mse": errors**2, "mae": absolute, "mase": absolute / season_error, "pinball": pinball(errors, offsets, LEVELS)}
    return {name: (float(np.nansum(loss)), float((~np.isnan(loss)).sum())) for name, loss in each.items()}


def _readable(forecaster: Forecaster, panel: Panel) -> Panel:
    """Without the covariates for those that read none."""
    if forecaster.covariates or not panel.names:
        return panel
    return dataclasses.replace(panel, covariates=np.zeros((len(panel.covariates), 0)), names=(), known=())
