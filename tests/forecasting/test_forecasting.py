"""What all forecasters stand on: windows without gaps, quantiles from errors, plain baselines in closed form, folders."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import instar
from instar.checks.forecaster_world import panel, table
from instar.data.panel import of_array
from instar.errors import CheckpointError, DataError, ShapeError
from instar.forecasting import inputs, residuals, saved, windows
from instar.forecasting.dlinear import DLinear
from instar.forecasting.linear import DLinearNetwork, InstanceNorm, MovingAverage, NLinearNetwork
from instar.forecasting.repeat_last import RepeatLast
from instar.forecasting.rlinear import RLinear
from instar.forecasting.seasonal_naive import SeasonalNaive

WAVE = np.sin(2 * np.pi * np.arange(200) / 8)[:, None]


def test_windows_are_what_stands_before_and_after_and_gaps_are_filled_from_before() -> None:
    values = np.arange(12.0)[:, None] * [1.0, 10.0]
    origins = np.array([2, 5])
    np.testing.assert_array_equal(windows.before(values, origins, 3)[1, :, 1], [20, 30, 40])
    assert bool(windows.before(values, origins, 3)[0, 0].isnan().all())
    assert bool(windows.after(values, np.array([11]), 2)[0, 1].isnan().all())
    gaps = torch.tensor([[torch.nan, 1.0, torch.nan, torch.nan, 4.0], [torch.nan] * 5]).unsqueeze(-1)
    np.testing.assert_array_equal(windows.filled(gaps)[..., 0], [[1, 1, 1, 1, 4], [0] * 5])
    assert windows.seen(gaps)[:, 0].tolist() == [True, False]
    assert list(windows.origins_of(of_array(values), 4, 3)) == list(range(4, 10))  # 12 − 4 − 3 + 1
    with pytest.raises(DataError, match="no window of 10 rows and 3 more"):
        windows.origins_of(of_array(values), 10, 3)


def test_the_scale_is_of_what_is_known_and_a_constant_has_deviation_1() -> None:
    values = np.array([[1.0, 7.0, np.nan], [3.0, 7.0, np.nan], [np.nan, 7.0, np.nan]])
    mean, deviation = inputs.scale(values)
    np.testing.assert_array_equal(mean, [2, 7, 0])
    np.testing.assert_array_equal(deviation, [1, 1, 1])


def test_seasonal_naive_has_no_error_on_what_is_periodic_and_repeats_the_last_value_for_season_1() -> None:
    given, origins = of_array(WAVE), list(range(20, 180))
    truth = windows.after(WAVE, np.array(origins), 20).numpy()
    np.testing.assert_allclose(SeasonalNaive(20, context=16, season=8).forecast(given, origins), truth, atol=1e-12)
    np.testing.assert_array_equal(
        SeasonalNaive(20, context=16, season=1).forecast(given, origins), RepeatLast(20, context=16).forecast(given, origins)
    )
    holes = WAVE.copy()
    holes[170:174] = np.nan
    assert SeasonalNaive(20, context=16, season=8).forecast(of_array(holes), [176])[0, 2, 0] == WAVE[178 - 16, 0]


def test_trend_and_the_rest_are_the_series_and_a_kernel_of_one_row_is_all_trend() -> None:
    x = torch.randn(2, 30, 3, dtype=torch.float64)
    trend = MovingAverage(5)(x)
    assert trend.shape == x.shape
    torch.testing.assert_close(trend[:, 4], x[:, 2:7].mean(1))
    torch.testing.assert_close(trend[:, 0], (3 * x[:, 0] + x[:, 1] + x[:, 2]) / 5)
    torch.testing.assert_close(MovingAverage(1)(x), x)
    torch.testing.assert_close(MovingAverage(5)(torch.ones_like(x)), torch.ones_like(x))
    with pytest.raises(ShapeError, match="odd"):
        MovingAverage(4)


def test_linear_networks_are_the_formulas() -> None:
    x = torch.randn(2, 12, 3)
    one, two = DLinearNetwork(12, 4, kernel=5), NLinearNetwork(12, 4)
    trend = one.average(x)
    expected = one.seasonal.weight @ (x - trend) + one.trend.weight @ trend + (one.seasonal.bias + one.trend.bias)[:, None]
    torch.testing.assert_close(one(x), expected)
    assert bool((one.trend.weight == 1 / 12).all())
    torch.testing.assert_close(two(x), two.map.weight @ (x - x[:, -1:]) + two.map.bias[:, None] + x[:, -1:])
    scaled, mean, deviation = InstanceNorm()(x)
    torch.testing.assert_close(scaled.mean(1), torch.zeros(2, 3), atol=1e-6, rtol=0)
    torch.testing.assert_close(scaled * deviation + mean, x)


def test_instance_norm_lets_gradients_through_the_deviation_only_where_asked() -> None:
    for detach, passes in (("both", False), ("mean", True)):
        x = torch.randn(1, 8, 1, requires_grad=True)
        deviation = InstanceNorm(detach)(x)[2]
        assert deviation.requires_grad == passes


def test_quantiles_cover_what_they_say_on_errors_like_those_before() -> None:
    draw = np.random.default_rng(0)
    walk = np.cumsum(draw.normal(size=(3000, 2)), axis=0)
    forecaster = RepeatLast(5, context=8).fit(walk[:2000], calibration=900)
    offsets = residuals.spread(forecaster, ("0", "1"), [0.1, 0.9])
    origins = np.arange(2000, 2990)
    left = windows.after(walk, origins, 5).numpy() - RepeatLast(5, context=8).forecast(of_array(walk), origins.tolist())
    covered = ((left > offsets[..., 0]) & (left < offsets[..., 1])).mean((0, 2))
    np.testing.assert_allclose(covered, 0.8, atol=0.08)
    assert (np.diff(offsets[..., 1].mean(1)) > 0).all()  # a random walk spreads with the step
    with pytest.raises(ShapeError, match="between 0 and 1"):
        forecaster.predict(quantiles=[1.0])


def test_errors_come_only_from_rows_that_taught_nothing() -> None:
    given = panel(120)
    forecaster = RLinear(4, context=16).fit(given, calibration=20, steps=5)
    again = RLinear(4, context=16).fit(given.until(100), steps=5)
    assert forecaster.errors is not None
    for name, value in forecaster.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    origins = list(range(100, 117))
    expected = windows.after(given.values, np.array(origins), 4).numpy() - again.forecast(given, origins)
    np.testing.assert_array_equal(forecaster.errors.numpy(), expected)


def test_a_forecaster_learns_a_wave_that_repeating_cannot() -> None:
    given, origins = of_array(WAVE[:150]), list(range(150, 190))
    forecaster = RLinear(6, context=16, lr=1e-2).fit(given, steps=300)
    error = forecaster.forecast(of_array(WAVE), origins) - windows.after(WAVE, np.array(origins), 6).numpy()
    assert float(np.abs(error).mean()) < 0.05


def test_missing_targets_teach_nothing() -> None:
    given = panel(60)
    holes = given.values.copy()
    holes[:, 0] = np.where(np.arange(60) < 40, holes[:, 0], np.nan)  # nothing of it is known after row 40
    one = RLinear(4, context=16).fit(replace(given, values=holes), steps=3)
    assert all(bool(torch.isfinite(value).all()) for value in one.state_dict().values())


def test_a_series_that_begins_after_training_is_forecast_at_its_own_level(tmp_path: Path) -> None:
    draw, rows = np.random.default_rng(0), 200
    values = np.stack([draw.normal(size=rows), 1e4 + draw.normal(size=rows)], axis=1)
    long = {
        "unique_id": ["a"] * rows + ["b"] * 50,
        "ds": [*range(rows), *range(150, rows)],
        "y": [*values[:, 0], *values[150:, 1]],
    }
    forecaster = DLinear(4, context=16).fit(long, calibration=50, steps=50)
    forecaster.save(tmp_path)
    for one in (forecaster, saved.load(tmp_path)):
        found = one.predict(quantiles=[0.1, 0.9])
        for name, column in found.items():
            if name not in ("unique_id", "ds"):
                np.testing.assert_allclose(column[found["unique_id"] == "b"], 1e4, atol=20)
    checked = DLinear(4, context=16).cross_validation(long, windows=10)
    begun = (checked["unique_id"] == "b") & (checked["cutoff"] >= 165)
    np.testing.assert_allclose(checked["dlinear"][begun], 1e4, atol=20)


def test_refit_windows_equal_forecasters_fitted_on_what_preceded_them() -> None:
    given = table(60)
    found = RLinear(4, context=16).cross_validation(given, windows=2, step=6, refit=True)
    for cutoff in np.unique(found["cutoff"]):
        before = {key: column[given["ds"] <= cutoff] for key, column in given.items()}
        alone = RLinear(4, context=16).fit(before).predict()
        for one in "abc":
            chosen = (found["cutoff"] == cutoff) & (found["unique_id"] == one)
            np.testing.assert_allclose(found["rlinear"][chosen], alone["rlinear"][alone["unique_id"] == one], rtol=1e-5)


def test_damaged_folders_are_refused(tmp_path: Path) -> None:
    RLinear(4, context=16).fit(table(), steps=2).save(tmp_path)
    path = tmp_path / "forecaster.json"
    good = json.loads(path.read_text())
    weights = tmp_path / good["weights"]
    for change in (
        {"format": "other"},
        {"method": "softmax"},
        {"weights": "../x.safetensors"},
        {"arguments": {"horizon": 5, "context": 16}},
        {"panel": {}},
    ):
        path.write_text(json.dumps({**good, **change}))
        with pytest.raises(CheckpointError):
            saved.load(tmp_path)
    path.write_text(json.dumps(good))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match="hash"):
        saved.load(tmp_path)


def test_the_interface_is_public() -> None:
    assert issubclass(RLinear, instar.Forecaster)
