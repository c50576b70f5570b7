"""Forecasts in closed form: drift, and ridge autoregression against least squares and against repeating the last value."""

from __future__ import annotations

import numpy as np
import pytest

from instar.checks.forecaster_world import panel
from instar.data.panel import of_array
from instar.errors import DataError, ShapeError
from instar.forecasting import inputs
from instar.forecasting.drift import Drift
from instar.forecasting.repeat_last import RepeatLast
from instar.forecasting.ridge_ar import RidgeAR


def test_drift_has_no_error_on_straight_lines_also_over_gaps() -> None:
    lines = np.arange(40.0)[:, None] * [2.0, -0.5] + [1.0, 3.0]
    holes = lines.copy()
    holes[10:13, 0] = holes[18:20, 1] = np.nan
    found = Drift(5, context=10).forecast(of_array(holes), [20])[0]
    np.testing.assert_allclose(found, lines[20:25], atol=1e-12)


def test_drift_is_the_last_value_where_one_is_known_and_passes_through_first_and_last_otherwise() -> None:
    one = np.full((12, 1), np.nan)
    one[7] = 4.0
    np.testing.assert_array_equal(Drift(3, context=8).forecast(of_array(one), [12]), np.full((1, 3, 1), 4.0))
    walk = np.cumsum(np.random.default_rng(0).normal(size=30))[:, None]
    found = Drift(2, context=9).forecast(of_array(walk), [25])[0, :, 0]
    np.testing.assert_allclose(found, walk[24, 0] + np.array([1, 2]) * (walk[24, 0] - walk[16, 0]) / 8)


def test_ridge_is_least_squares_without_a_penalty_and_repeats_the_last_value_under_a_large_one() -> None:
    given, L, H = panel(), 6, 3
    values = given.values / inputs.scale(given.values)[1]
    rows = [(values[o - L : o, n], values[o : o + H, n]) for o in range(L, len(values) - H + 1) for n in range(3)]
    x, y = (np.stack(part) for part in zip(*rows, strict=True))
    expected = np.linalg.lstsq(x[:, :-1] - x[:, -1:], y - x[:, -1:], rcond=None)[0]
    found = RidgeAR(H, context=L, penalty=1e-12).fit(given).map.numpy()
    np.testing.assert_allclose(found[:, :-1].T, expected, atol=1e-6)
    np.testing.assert_allclose(found[:, -1], 0, atol=1e-9)  # x_L − x_L tells nothing
    strong = RidgeAR(H, context=L, penalty=1e9).fit(given)
    last = RepeatLast(H, context=L).forecast(given, [30])
    np.testing.assert_allclose(strong.forecast(given, [30]), last, rtol=1e-6, atol=1e-6)


def test_ridge_satisfies_its_normal_equations_and_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    given, L, H, penalty = panel(), 5, 2, 0.3
    whole = RidgeAR(H, context=L, penalty=penalty).fit(given).map.numpy()
    values = given.values / inputs.scale(given.values)[1]
    at = [(o, n) for o in range(L, len(values) - H + 1) for n in range(3)]
    x = np.stack([values[o - L : o, n] - values[o - 1, n] for o, n in at])
    y = np.stack([values[o : o + H, n] - values[o - 1, n] for o, n in at])
    gradient = (x @ whole.T - y).T @ x / len(x) + penalty * whole
    np.testing.assert_allclose(gradient, 0, atol=1e-10)
    monkeypatch.setattr("instar.forecasting.ridge_ar._BLOCK", 40)
    np.testing.assert_allclose(RidgeAR(H, context=L, penalty=penalty).fit(given).map.numpy(), whole, atol=1e-12)


def test_ridge_finds_the_coefficients_of_an_autoregression_whose_last_ones_sum_to_one() -> None:
    draw = np.random.default_rng(0)
    y = np.zeros(4000)
    for t in range(2, len(y)):
        y[t] = 1.4 * y[t - 1] - 0.4 * y[t - 2] + draw.normal()
    found = RidgeAR(1, context=3, penalty=1e-9).fit(y[:, None]).map.numpy()[0]
    np.testing.assert_allclose(found, [0, -0.4, 0], atol=0.05)  # beside the last value itself, ŷ = x_L − 0.4 (x_{L−1} − x_L)


def test_ridge_skips_windows_with_missing_targets_and_refuses_where_none_is_left() -> None:
    values = panel().values.copy()
    values[30, 0] = np.nan
    found = RidgeAR(3, context=6).fit(values)
    assert np.isfinite(found.map.numpy()).all()
    values[::3] = np.nan
    with pytest.raises(DataError, match="followed by 3 known values"):
        RidgeAR(3, context=6).fit(values)
    with pytest.raises(ShapeError, match="penalty above 0"):
        RidgeAR(3, penalty=0.0)
    with pytest.raises(ShapeError, match="no map yet"):
        RidgeAR(3, context=6).forecast(of_array(values), [30])
