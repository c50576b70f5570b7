"""Anomalous rows found by forecasts: where the next row is not what was expected."""

from __future__ import annotations

import dataclasses
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from instar.bench.seeds import derive
from instar.catalogue import Build
from instar.data import faults
from instar.data.forecast_sets import EMBEDDED, forecast_set
from instar.data.panel import Panel, Values
from instar.errors import DataError, ShapeError
from instar.forecasting import inputs, windows
from instar.interfaces import Data, Forecaster, Items, Monitor, Problem
from instar.problems import detection
from instar.problems.kept import digest

_QUANTILE = 0.99
_SHARES = (0.5, 0.7)
_FAULTS = (4, 8)


@dataclass(frozen=True)
class Watched:
    """Rows that are scored, each from those before it."""

    panel: Panel
    labels: detection.Labels
    """[T], whether a row is anomalous."""
    origins: range
    normal: range
    """Rows of training, whose scores set the threshold."""


class AnomalyProblem(Problem):
    """roc_auc, pr_auc and F1 of scores: the largest over series of |y_t − ŷ_t| over its mean in training, one row ahead.

    Args:
        data: a table of your own with a column that says which rows are anomalous; None is the recording that ships with
            matplotlib, with faults planted in its second half (`data.faults`; the seed draws where).
        time, target: as of `forecast`. label: the column, 1 or true where a row is anomalous; in a long table, where
            any of the series is.
        context: L, rows that a forecast reads. batch: windows a step.

    Rows of training are the first half, validation the next fifth, test the rest. Anomalous rows of training are missing values
    there: nothing is learnt from them. F1 is at the 99 % quantile of the scores in training; `best_f1` and `adjusted_f1` choose
    their threshold on the test rows and are shown to be seen through. Raises DataError, ShapeError, UnknownNameError.
    """

    accepts: ClassVar = {Forecaster: "forecaster"}

    def __init__(
        self,
        *,
        data: str | None = None,
        time: str | None = None,
        target: str | list[str] | None = None,
        label: str = "label",
        context: int = 32,
        batch: int = 32,
    ) -> None:
        if min(context, batch) < 1:
            raise ShapeError(f"anomaly expects a context and a batch of at least 1; received {context} and {batch}.")
        self.data, self.time, self.target, self.label = data, time, target, label
        self.context, self.batch, self.season = context, batch, 1
        self.tokens_per_step = batch * context

    def load(self, seed: int) -> Data:
        """The seed draws the planted faults; a table is the same for every seed."""
        panel, labels, name = self._labelled(seed)
        T = len(panel)
        first, second = (int(share * T) for share in _SHARES)
        if first < self.context + 2 or T - second < 2:
            raise DataError(f"{name}: {T} rows are too few for a context of {self.context}. Give more, or a smaller context.")
        values = panel.values.copy()
        values[:first][labels[:first]] = np.nan
        mean, deviation = inputs.scale(values[:first])
        scaled = dataclasses.replace(panel, values=(values - mean) / deviation)
        normal = range(self.context, first)
        splits = [
            Watched(scaled.until(end), labels[:end], range(begin, end), normal)
            for begin, end in ((self.context, first), (first, second), (second, T))
        ]
        test = labels[second:]
        if not test.any() or test.all():
            raise DataError(f"{name}: the test rows must hold anomalous rows and others; {int(test.sum())} of {len(test)} are.")
        chance = np.random.default_rng(0).random(len(test))
        facts = {
            **{"name": name, "item": "run of anomalous rows", "series": len(panel.ids), "rows": T},
            **{"test_items": len(detection.segments(test)), "anomalous_test_rows": int(test.sum())},
            "adjusted_f1_of_random_scores": round(detection.best_f1(chance, test, adjust=True), 4),
        }
        return Data(splits[0], splits[1], splits[2], digest([name, scaled.values, labels]), facts)

    def forecaster(self, build: Build, data: Data, seed: int) -> Forecaster:
        """The method, one row ahead."""
        takes = inspect.signature(build.cls).parameters
        given = {name: getattr(self, name) for name in ("season", "batch") if name in takes}
        made: Forecaster = build(1, context=self.context, **given)
        made.prepare(data.train.panel)
        return made

    def fit(
        self,
        subject: Forecaster,
        train: Watched,
        *,
        steps: int,
        seed: int,
        monitor: Monitor | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        """Steps of windows in random order; a formula has none, and tells that all of them are done."""
        subject.learn(train.panel, steps=steps, seed=seed, monitor=monitor, checkpoint=checkpoint)
        if not subject.trained and monitor is not None:
            for step in range(steps):
                if monitor(step + 1, 0.0):
                    break

    def evaluate(self, subject: Forecaster, split: Watched) -> dict[str, Items]:
        """Every row of the span. Raises DataError where none is anomalous, since nothing can be found there."""
        labels = split.labels[split.origins.start : split.origins.stop]
        if not labels.any():
            raise DataError("No row of this span is anomalous, so that nothing can be said of what finds them.")
        usual = self._errors(subject, split.panel, split.normal)
        level = np.nanmean(usual, axis=0)
        level = np.where(level > inputs.FLAT, level, 1.0)
        threshold = float(np.nanquantile(_scores(usual, level), _QUANTILE))
        scores = _scores(self._errors(subject, split.panel, split.origins), level)
        single = {
            "f1": detection.f1(scores > threshold, labels),
            "best_f1": detection.best_f1(scores, labels),
            "adjusted_f1": detection.best_f1(scores, labels, adjust=True),
        }
        areas = {"roc_auc": detection.roc_auc(scores, labels), "pr_auc": detection.pr_auc(scores, labels)}
        return {**areas, **{name: Items([value], [1.0]) for name, value in single.items()}}

    def _errors(self, subject: Forecaster, panel: Panel, origins: range) -> Values:
        """|y − ŷ| of each row and series, NaN where the row is missing."""
        truth = windows.after(panel.values, np.array(origins), 1).numpy()
        found: Values = np.abs(truth - subject.forecast(panel, origins))[:, 0]
        return found

    def _labelled(self, seed: int) -> tuple[Panel, detection.Labels, str]:
        if self.data is None:
            found = forecast_set(EMBEDDED)
            T = len(found.panel)
            first, second = (int(share * T) for share in _SHARES)
            values, one = faults.plant(found.panel.values, first, second, _FAULTS[0], derive(seed, "faults/valid"))
            values, two = faults.plant(values, second, T, _FAULTS[1], derive(seed, "faults/test"))
            return dataclasses.replace(found.panel, values=values), one | two, f"{EMBEDDED}, faults planted"
        found = forecast_set(self.data, time=self.time, target=self.target, covariates=[self.label])
        self.season, marks = found.season, found.panel.covariates  # a column for each series where their labels differ
        if not set(np.unique(marks[~np.isnan(marks)]).tolist()) <= {0.0, 1.0}:
            raise DataError(f"{found.name}: the column {self.label} holds 1 where a row is anomalous and 0 elsewhere, no more.")
        panel = dataclasses.replace(found.panel, covariates=np.zeros((len(marks), 0)), names=(), known=())
        return panel, (marks == 1.0).any(1), found.name


def _scores(errors: Values, level: Values) -> detection.Scores:
    """The largest over the series that are there, so that a fault of one is not thinned out by the others; 0 where none is."""
    found: detection.Scores = np.where(np.isnan(errors), 0.0, errors / level).max(1)
    return found
