"""Does sentiment help to forecast returns? Against doing nothing, and against sentiment that cannot know anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instar.data.finance.forecast_tests import Difference, difference
from instar.data.finance.forecasters import forecast
from instar.data.finance.scoring import NEUTRAL
from instar.errors import DataError, ShapeError, UnknownNameError

ARMS = ("without", "with", "shuffled", "lagged")
MODELS = ("ridge", "mlp")
_TRAIN = 0.85
_VALID = 0.15
"""Of the training part, its last days: they choose settings."""
_RECENT = 5
"""Sessions whose sentiment is seen."""
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """How well one model with one kind of sentiment forecasts."""

    model: str
    arm: str
    horizon: int
    mse: float
    mae: float
    direction: float
    """Share of the signs that are right."""
    against_persistence: Difference
    against_without: Difference | None
    """None for the arm `without` itself."""


@dataclass(frozen=True)
class Effect:
    """All rows, and the figures that they are compared with."""

    rows: list[Row]
    persistence_mse: dict[int, float]
    drift_mse: dict[int, float]
    majority: dict[int, float]
    """Direction accuracy of always saying the more frequent sign of training."""
    symbols: int
    train: int
    test: int
    sessions: int
    """In the test part."""

    def answer(self, model: str, horizon: int) -> str:
        """In words: whether sentiment helped. It has to beat the same model without it, and the one with shuffled sentiment."""
        found = {row.arm: row for row in self.rows if (row.model, row.horizon) == (model, horizon)}
        if not found:
            raise UnknownNameError.among(
                "model and horizon", f"{model}, {horizon}", [f"{r.model}, {r.horizon}" for r in self.rows]
            )
        gain, control = found["with"].against_without, found["shuffled"].against_without
        assert gain is not None
        assert control is not None
        said = f"MSE {100 * gain.relative:+.2f} % [{100 * gain.low:+.2f}, {100 * gain.high:+.2f}] against without, p {gain.p:.2f}"
        if gain.high < 0 and gain.p < 0.05 and gain.relative < control.relative:
            useful = found["with"].against_persistence.high < 0
            return f"sentiment helps {model} ({said})" + ("." if useful else ", but the forecast does not beat persistence.")
        if gain.low > 0:
            return f"sentiment harms {model} ({said})."
        return f"no effect of sentiment on {model} is shown ({said})."


def sentiment_effect(
    daily: Any,
    *,
    horizons: Sequence[int] = (1, 3),
    models: Sequence[str] = MODELS,
    past: int = 20,
    lag: int = 20,
    seeds: int = 3,
    column: str = "decayed",
) -> Effect:
    """Forecast log returns with and without sentiment, chronologically, and test the difference.

        target  y_s = Σ_{k=1..h} log_return_{s+k}
        seen at the close of s: the last `past` log returns, the volume's z-score, (S − 3)/2 and news_flag of 5 sessions

    Args:
        daily: a frame as `load_daily` returns it (alignment strict: otherwise sentiment sees the future).
        horizons: h, in sessions. models: ridge, and mlp, a network of one hidden layer. past: see above.
        lag: sessions by which the arm `lagged` sees sentiment late. column: of the sentiment.
        seeds: of the network and of shuffling; forecasts are averaged.

    Arms: without; with; shuffled (the sessions of each symbol in another order, training and test apart: the same values, no
    knowledge); lagged. The test is the last days, which hold 15 % of all rows: the same days for every symbol, since symbols of
    one day move together, and no target of training reaches into them. One model for all symbols. Persistence says that the price
    stays (y = 0), drift the mean of training. Losses are averaged over symbols within a session before they are tested: symbols
    of one day are not independent. Raises DataError, ShapeError.
    """
    for name in models:
        if name not in MODELS:
            raise UnknownNameError.among("model", name, MODELS)
    if min(horizons, default=0) < 1 or past < 1 or lag < 1 or seeds < 1:
        raise ShapeError(f"Horizons, past, lag and seeds are at least 1; received {list(horizons)}, {past}, {lag}, {seeds}.")
    series = _series(daily, column)
    rows: list[Row] = []
    persistence, drift, majority = {}, {}, {}
    sizes = (0, 0, 0)
    for horizon in horizons:
        plain = _parts(series, horizon, past, "without", lag, 0)
        target, days = plain["test"][1], plain["test"][2]
        trained = plain["train"][1]
        persistence[horizon] = float((target**2).mean())
        drift[horizon] = float(((target - trained.mean()) ** 2).mean())
        majority[horizon] = float((np.sign(target) == (1 if (trained > 0).mean() >= 0.5 else -1)).mean())
        sizes = len(plain["train"][0]), len(target), len(np.unique(days))
        for model in models:
            base: Floats | None = None
            for arm in ARMS:
                seen = [_parts(series, horizon, past, arm, lag, seed) for seed in range(seeds)]
                said = np.mean([forecast(model, parts, seed) for seed, parts in enumerate(seen)], axis=0)
                losses = _by_day((target - said) ** 2, days)
                base = losses if arm == "without" else base
                assert base is not None
                rows.append(
                    Row(
                        model,
                        arm,
                        horizon,
                        float(((target - said) ** 2).mean()),
                        float(np.abs(target - said).mean()),
                        float((np.sign(said) == np.sign(target)).mean()),
                        difference(losses, _by_day(target**2, days), horizon),
                        None if arm == "without" else difference(losses, base, horizon),
                    )
                )
    return Effect(rows, persistence, drift, majority, len(series), *sizes)


@dataclass(frozen=True)
class _Series:
    """One symbol: sessions [N], returns [N], volume's z [N], sentiment (S − 3)/2 and flag [N, 2]."""

    days: NDArray[np.int64]
    returns: Floats
    volume: Floats
    said: Floats


def _series(daily: Any, column: str) -> list[_Series]:
    found = []
    for _, rows in daily.groupby("symbol", sort=True):
        rows = rows.sort_values("session")
        score = (rows[column].to_numpy(np.float64) - NEUTRAL) / 2
        flag = rows["news_flag"].to_numpy(np.float64)
        found.append(
            _Series(
                rows["session"].to_numpy().astype("datetime64[D]").astype(np.int64),
                rows["log_return"].to_numpy(np.float64),
                np.nan_to_num(rows["volume_z"].to_numpy(np.float64)).clip(-5, 5),
                np.column_stack([np.nan_to_num(score), np.nan_to_num(flag)]),
            )
        )
    if not found:
        raise DataError("The table has no rows.")
    return found


def _parts(
    series: Sequence[_Series], horizon: int, past: int, arm: str, lag: int, seed: int
) -> dict[str, tuple[Floats, Floats, NDArray[np.int64]]]:
    """train, valid, test: features [N, F], targets [N] and days [N], all symbols together."""
    found: dict[str, list[tuple[Floats, Floats, NDArray[np.int64]]]] = {"train": [], "valid": [], "test": []}
    first = max(past, lag + _RECENT)
    days = np.sort(np.concatenate([one.days for one in series]))
    cuts = days[int(len(days) * _TRAIN * (1 - _VALID))], days[int(len(days) * _TRAIN)]
    for number, one in enumerate(series):
        count = len(one.days)
        middle, edge = np.searchsorted(one.days, cuts).tolist()
        said = _arm(one.said, arm, lag, edge, np.random.default_rng([seed, number]))
        for name, start, stop in (
            ("train", first, middle - horizon),
            ("valid", middle, edge - horizon),
            ("test", edge, count - horizon),
        ):
            places = np.arange(max(start, first), stop)
            if len(places):
                seen = [one.returns[places[:, None] - np.arange(past)], one.volume[places, None]]
                if arm != "without":
                    seen.append(said[places[:, None] - np.arange(_RECENT)].reshape(len(places), -1))
                target = np.sum([one.returns[places + k] for k in range(1, horizon + 1)], axis=0)
                x = np.hstack(seen)
                whole = np.isfinite(x).all(1) & np.isfinite(target)
                found[name].append((x[whole], target[whole], one.days[places][whole]))
    parts = {name: tuple(np.concatenate(column) for column in zip(*rows, strict=True)) for name, rows in found.items() if rows}
    if len(parts) < 3 or min(len(rows[0]) for rows in parts.values()) < 30:
        raise DataError(f"There are too few sessions to learn from {past} of them and to test on 15 %: give longer tables.")
    return parts  # type: ignore[return-value]


def _arm(said: Floats, arm: str, lag: int, edge: int, draw: np.random.Generator) -> Floats:
    if arm == "lagged":
        return np.concatenate([np.zeros((min(lag, len(said)), said.shape[1])), said[:-lag]])
    if arm == "shuffled":
        return said[np.concatenate([draw.permutation(edge), edge + draw.permutation(len(said) - edge)])]
    return said


def _by_day(losses: Floats, days: NDArray[np.int64]) -> Floats:
    """The mean of each session, in order."""
    _, place, many = np.unique(days, return_inverse=True, return_counts=True)
    return np.bincount(place, losses) / many
