"""Forecasts compared: splits in order, scaled by training alone, every window scored at any batch size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from instar import catalogue
from instar.bench import costs
from instar.bench.plan import Request, prepare
from instar.bench.run import lift
from instar.data.forecast_sets import forecast_set
from instar.data.panel import Panel
from instar.errors import DataError, ShapeError, UnknownNameError
from instar.forecasting import windows
from instar.forecasting.repeat_last import RepeatLast
from instar.interfaces import Data
from instar.problems.forecast import LEVELS, ForecastProblem, pinball, season_error

ROWS = 300


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two daily series and a column that is no target, rows in disorder, some values missing."""
    draw = np.random.default_rng(0)
    day = np.datetime64("2025-01-01") + np.arange(ROWS)
    lines = [
        f"{day[t]},{'' if t % 50 == 7 else 100 + 10 * np.sin(2 * np.pi * t / 7) + draw.normal()},{t + draw.normal()},{t % 2}"
        for t in range(ROWS)
    ]
    path = tmp_path_factory.mktemp("own") / "sales.csv"
    path.write_text("\n".join(["date,shop,web,promotion", *draw.permutation(lines)]), "utf-8")
    return path


@pytest.fixture(scope="module")
def problem(path: Path) -> ForecastProblem:
    return ForecastProblem(data=str(path), target=["shop", "web"], horizon=6, context=20)


@pytest.fixture(scope="module")
def data(problem: ForecastProblem) -> Data:
    return problem.load(0)


def test_splits_are_in_order_and_scaled_by_training_alone(problem: ForecastProblem, data: Data, path: Path) -> None:
    assert (data.facts["series"], data.facts["rows"], data.facts["season"]) == (2, ROWS, 7)
    assert (data.train.origins, data.valid.origins, data.test.origins) == (range(20, 205), range(210, 235), range(240, 295))
    assert [len(part.panel) for part in (data.train, data.valid, data.test)] == [210, 240, 300]
    np.testing.assert_allclose(np.nanmean(data.train.panel.values, axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(np.nanstd(data.train.panel.values, axis=0), 1, atol=1e-9)
    text = path.read_text("utf-8").splitlines()
    late = [line for line in text[1:] if line[:10] >= str(np.datetime64("2025-01-01") + 240)]
    other = path.with_name("other.csv")
    other.write_text("\n".join(line if line not in late else f"{line[:10]},999,999,1" for line in text), "utf-8")
    again = ForecastProblem(data=str(other), target=["shop", "web"], horizon=6, context=20).load(0)
    np.testing.assert_array_equal(again.valid.panel.values, data.valid.panel.values)
    assert again.sha256 != data.sha256


def test_the_data_do_not_depend_on_the_look_back(problem: ForecastProblem, data: Data, path: Path) -> None:
    for context in (10, 40):
        longer = ForecastProblem(data=str(path), target=["shop", "web"], horizon=6, context=context).load(0)
        assert longer.sha256 == data.sha256
        assert longer.test.origins == data.test.origins


@pytest.mark.parametrize("batch", [1, 7, 32, 500])
def test_every_window_is_scored_at_any_batch_size(path: Path, batch: int) -> None:
    problem = ForecastProblem(data=str(path), target="web", horizon=6, context=20, batch=batch)
    data = problem.load(0)
    subject = lift(problem, "dlinear", {}, data, 0)
    problem.fit(subject, data.train, steps=2, seed=0)
    found = problem.evaluate(subject, data.test)
    assert data.facts["test_windows"] == 60 - 6 + 1
    for items in found.values():
        assert sum(items.weights) == 55 * 6
        assert len(items.totals) == data.facts["test_items"] == 10


def test_a_stride_scores_every_so_manyth_window(path: Path) -> None:
    problem = ForecastProblem(data=str(path), target="web", horizon=6, context=20, stride=5)
    data = problem.load(0)
    found = problem.evaluate(lift(problem, "repeat_last", {}, data, 0), data.test)
    assert data.test.origins == range(240, 295, 5)
    assert sum(found["mse"].weights) == 11 * 6
    assert len(found["mse"].totals) == data.facts["test_items"] == 6  # two windows begin within six rows


def test_losses_are_their_definitions_and_missing_truth_is_not_scored(problem: ForecastProblem, data: Data) -> None:
    subject = lift(problem, "repeat_last", {}, data, 0)
    told: list[int] = []
    problem.fit(subject, data.train, steps=3, seed=0, monitor=lambda step, loss: told.append(step))
    assert told == [1, 2, 3]
    found = problem.evaluate(subject, data.test)
    origins = np.array(data.test.origins)
    truth = windows.after(data.test.panel.values, origins, 6).numpy()
    errors = truth - RepeatLast(6, context=20).forecast(data.test.panel, origins.tolist())
    assert sum(found["mse"].weights) == (~np.isnan(errors)).sum() < errors.size
    assert found["mse"].value == pytest.approx(np.nanmean(errors**2))
    assert found["mae"].value == pytest.approx(np.nanmean(np.abs(errors)))
    assert found["mase"].value == pytest.approx(np.nanmean(np.abs(errors) / data.test.season_error))
    assert 0 < found["pinball"].value < found["mae"].value


def test_quantiles_of_the_test_span_come_from_rows_that_taught_nothing(problem: ForecastProblem, data: Data) -> None:
    subject = lift(problem, "repeat_last", {}, data, 0)
    read: list[int] = []
    forecast = subject.forecast

    def watched(panel: Panel, origins: Sequence[int], **given: Any) -> Any:
        read.extend(origins if len(panel) == len(data.valid.panel) else [])
        return forecast(panel, origins, **given)

    subject.forecast = watched
    problem.evaluate(subject, data.test)
    assert read == list(range(210, 240 - 6 + 1))  # all of validation, which ends where the test span begins
    assert min(read) >= len(data.train.panel)


def test_mase_of_the_seasonal_forecast_in_training_is_one_and_pinball_of_the_median_half_the_error() -> None:
    values = np.cumsum(np.random.default_rng(0).normal(size=(100, 2)), axis=0)
    errors = np.abs(values[7:] - values[:-7]) / season_error(values, 7)
    np.testing.assert_allclose(errors.mean(0), 1)
    assert np.isnan(season_error(np.ones((20, 1)), 7)).all()
    left = np.random.default_rng(1).normal(size=(5, 3, 2))
    np.testing.assert_allclose(pinball(left, np.zeros((3, 2, 1)), [0.5]), np.abs(left) / 2)
    true_quantiles = np.quantile(left, LEVELS, axis=0).transpose(1, 2, 0)
    assert pinball(left, true_quantiles, LEVELS).mean() < pinball(left, true_quantiles + 0.3, LEVELS).mean()


def test_what_no_series_reads_stays_out_and_covariates_go_to_those_that_read_them(path: Path) -> None:
    problem = ForecastProblem(data=str(path), target="shop", covariates=["promotion"], horizon=6, context=20)
    data = problem.load(0)
    assert data.train.panel.names == ("promotion",)
    for name in ("rlinear", "itransformer"):
        subject = lift(problem, name, {}, data, 0)
        problem.fit(subject, data.train, steps=2, seed=0)
        assert np.isfinite(problem.evaluate(subject, data.test)["mse"].value)


def test_the_look_back_is_the_problems_for_every_method(path: Path) -> None:
    settings = {"data": str(path), "target": "web", "horizon": 6, "context": 20}
    request = Request(
        "forecast", ("seasonal_naive", "itransformer"), settings=settings, overrides={"itransformer": {"width": 16}}
    )
    plan, problem, data = prepare(request)
    for entry in plan.entries:
        subject = lift(problem, entry.slug, entry.arguments, data, 0)
        assert subject.context == 20
        assert getattr(subject, "season", 7) == 7
        assert getattr(subject, "width", 16) == 16
    asked = prepare(replace(request, overrides={"itransformer": {"context": 10}}))[0].entries[-1]
    assert lift(problem, asked.slug, asked.arguments, data, 0).context == 10


def test_costs_are_measured_and_formulas_hold(problem: ForecastProblem, data: Data) -> None:
    found = costs.measure(problem, lift(problem, "rlinear", {}, data, 0), data, 0)
    assert found["parameters"] == 21 * 6
    assert found["forecast_flops"] == 2 * 2 * 20 * 6
    assert costs.measure(problem, lift(problem, "repeat_last", {}, data, 0), data, 0)["parameters"] == 0


def test_long_tables_and_the_recording_that_ships(tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    rows = [f"{name},{t},{t * (1 + (name == 'b'))}" for name in "ab" for t in range(90)]
    path.write_text("\n".join(["unique_id,ds,y", *rows]), "utf-8")
    found = forecast_set(str(path))
    assert (found.panel.ids, len(found.panel), found.train, found.valid) == (("a", "b"), 90, 63, 72)
    default = forecast_set(None)
    assert default.panel.values.shape == (800, 4)
    assert catalogue.problem("forecast").metric("mse").direction == "lower"


def test_what_it_refuses(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ShapeError):
        ForecastProblem(horizon=0)
    with pytest.raises(UnknownNameError, match="ETTh1"):
        forecast_set("ETTh2x")
    with pytest.raises(UnknownNameError, match="shop"):
        forecast_set(str(path), target="shopp")
    with pytest.raises(DataError, match="validation span has 30 rows"):
        ForecastProblem(data=str(path), horizon=61, context=20, target="web").load(0)
    text = tmp_path / "text.csv"
    text.write_text("date,a,note\n2026-01-01,1,good\n2026-01-02,2,bad\n", "utf-8")
    with pytest.raises(DataError, match="note is 'good'"):
        forecast_set(str(text))


def test_row_numbers_of_pandas_are_no_series_and_true_is_one(tmp_path: Path) -> None:
    lines = [f"{row},2024-01-{row % 28 + 1:02d},{row},{str(row % 2 > 0).lower()}" for row in range(28)]
    (tmp_path / "own.csv").write_text("\n".join([",date,a,open", *lines]))
    found = forecast_set(str(tmp_path / "own.csv"), covariates=["open"]).panel
    assert (found.ids, found.names) == (("a",), ("open",))
    assert found.covariates[:4, 0].tolist() == [0, 1, 0, 1]
    (tmp_path / "own.csv").write_text("\n".join([",date,a,open", *(f"9{line}" for line in lines)]))
    with pytest.raises(DataError, match=r"Column 1 of .* has no name"):
        forecast_set(str(tmp_path / "own.csv"), covariates=["open"])
