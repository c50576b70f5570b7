"""The experiment finds sentiment that knows something, does not find what knows nothing, and never sees the future."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

import numpy as np
import pytest

from instar.data.finance import experiment
from instar.data.finance.experiment import sentiment_effect
from instar.data.finance.forecast_tests import diebold_mariano, difference
from instar.errors import DataError, ShapeError, UnknownNameError


def table(knows: float, seed: int = 0, sessions: int = 500) -> Any:
    """Three symbols. Sentiment of session s is the return of s + 1, as far as it `knows`, and noise."""
    pandas = pytest.importorskip("pandas")
    draw = np.random.default_rng(seed)
    found = []
    for symbol in ("A", "B", "C"):
        returns = 0.02 * draw.normal(size=sessions)
        said = knows * np.append(returns[1:], 0) / 0.02 + np.sqrt(1 - knows**2) * draw.normal(size=sessions)
        found.append(
            pandas.DataFrame(
                {
                    "symbol": symbol,
                    "session": [date(2020, 1, 1) + timedelta(days=day) for day in range(sessions)],
                    "log_return": returns,
                    "volume_z": draw.normal(size=sessions),
                    "decayed": 3 + 0.5 * said,
                    "news_flag": 1.0,
                }
            )
        )
    return pandas.concat(found, ignore_index=True)


@pytest.mark.parametrize("model", ["ridge", "mlp"])
def test_sentiment_that_knows_the_next_return_helps_and_shuffled_it_does_not(model: str) -> None:
    found = sentiment_effect(table(0.6, sessions=350), horizons=[1], models=[model], seeds=1)
    rows = {row.arm: row for row in found.rows}
    assert rows["with"].against_without is not None
    assert rows["with"].against_without.high < -0.15
    assert rows["with"].direction > 0.6
    for arm in ("shuffled", "lagged"):
        other = rows[arm].against_without
        assert other is not None
        assert other.relative > -0.05
    assert found.answer(model, 1).startswith(f"sentiment helps {model}")
    assert rows["with"].against_persistence.high < 0


def test_noise_does_not_help() -> None:
    found = sentiment_effect(table(0.0, seed=1), horizons=[1, 3], models=["ridge"], seeds=1)
    assert all("no effect" in found.answer("ridge", horizon) or "harms" in found.answer("ridge", horizon) for horizon in (1, 3))
    assert found.persistence_mse[1] == pytest.approx(4e-4, rel=0.2)
    assert found.persistence_mse[3] == pytest.approx(12e-4, rel=0.3)
    assert 0.45 < found.majority[1] < 0.6
    with pytest.raises(UnknownNameError, match="horizon"):
        found.answer("ridge", 2)


def test_no_target_of_training_reaches_into_the_test_and_no_feature_beyond_its_session() -> None:
    frame = table(0.5)
    series = experiment._series(frame, "decayed")
    parts = experiment._parts(series, 3, 20, "with", 20, 0)
    spoiled = frame.copy()
    edge = int(500 * 0.85)
    late = spoiled.groupby("symbol").cumcount() >= edge
    spoiled.loc[late, ["log_return", "decayed", "volume_z"]] = 7.0
    other = experiment._parts(experiment._series(spoiled, "decayed"), 3, 20, "with", 20, 0)
    for name in ("train", "valid"):
        for one, two in zip(parts[name], other[name], strict=True):
            np.testing.assert_array_equal(one, two)
    last = frame.copy()
    last.loc[last.groupby("symbol").cumcount() >= 450, ["log_return", "decayed", "volume_z"]] = 7.0
    cut = experiment._parts(experiment._series(last, "decayed"), 3, 20, "with", 20, 0)
    before = parts["test"][2] < np.sort(np.unique(series[0].days))[450]
    np.testing.assert_array_equal(parts["test"][0][before], cut["test"][0][before])


def test_shuffling_keeps_the_values_and_training_apart_from_test() -> None:
    said = np.arange(40.0).reshape(20, 2)
    mixed = experiment._arm(said, "shuffled", 3, 15, np.random.default_rng(0))
    assert sorted(mixed[:15, 0]) == said[:15, 0].tolist()
    assert sorted(mixed[15:, 0]) == said[15:, 0].tolist()
    np.testing.assert_array_equal(experiment._arm(said, "lagged", 3, 15, np.random.default_rng(0))[3:], said[:-3])


def test_the_test_of_diebold_and_mariano_is_a_t_test_at_horizon_1_and_right_in_size() -> None:
    from scipy import stats

    draw = np.random.default_rng(0)
    one, two = draw.random(50), draw.random(50)
    expected = stats.ttest_1samp(one - two, 0)
    statistic, p = diebold_mariano(one, two)
    assert statistic == pytest.approx(expected.statistic, rel=1e-10)
    assert p == pytest.approx(expected.pvalue, rel=1e-10)
    assert diebold_mariano(one, one) == (0.0, 1.0)
    rejected = 0
    for _ in range(400):  # errors that overlap, as those of three sessions ahead do
        noise = np.convolve(draw.normal(size=202), np.ones(3) / 3, "valid")
        rejected += diebold_mariano(1 + noise, np.ones(200), 3)[1] < 0.05
    assert 0.02 < rejected / 400 < 0.11
    found = difference(one, one + 0.2)
    assert found.low < found.relative < found.high < 0
    assert found.p < 0.05


def test_bad_requests_are_told() -> None:
    frame = table(0.0, sessions=60)
    with pytest.raises(DataError, match="too few sessions"):
        sentiment_effect(frame, horizons=[1])
    with pytest.raises(ShapeError, match="at least 1"):
        sentiment_effect(frame, horizons=[0])
    with pytest.raises(UnknownNameError, match="ridge"):
        sentiment_effect(frame, models=["rigde"])
    with pytest.raises(DataError, match="no rows"):
        sentiment_effect(frame.iloc[:0])
    with pytest.raises(DataError, match="say nothing"):
        difference(np.ones(5), np.ones(5))
    with pytest.raises(DataError, match="one length"):
        difference(np.ones(50), np.ones(51))
    with pytest.raises(DataError, match="not finite"):
        difference(np.full(50, np.nan), np.ones(50))
