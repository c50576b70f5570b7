"""Features of a symbol for each session: what the news say, how long ago they said it, and what the market did."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instar.data.finance.scoring import NEUTRAL, scaled
from instar.data.finance.sessions import Days, day_of

Numbers = NDArray[np.float64]
PRICES = ("open", "high", "low", "close", "adj_close", "volume")


@dataclass(frozen=True)
class News:
    """An article of a symbol."""

    day: int
    """Of its session, days since 1970."""
    score: float | None
    copy: bool = False
    """A duplicate of one: it counts as a copy, and not as an opinion."""


@dataclass(frozen=True)
class Bars:
    """One retrieval of a symbol's prices: days [N], ascending, and open, high, low, close, adj_close, volume [N, 6]."""

    days: Days
    values: Numbers


def daily(
    symbol: str, news: Sequence[News], bars: Sequence[Bars], sessions: Days, *, rate: float = 0.05, window: int = 20
) -> list[dict[str, Any]]:
    """A row for each session from the first price to the last; without prices, from the first article to the last.

        mean_s = average of the scores of session s              decayed_s = mean_s, and without a score
        decayed_s = 3 + (decayed_l − 3) · exp(−rate · (s − l))   l: the last session with a score, in calendar days
        log_return_s = ln(adj_s / adj of the last session with a price)    volume_z_s from the `window` sessions before s

    Before the first score decayed is missing, never neutral. A row depends on articles and prices up to its session alone.
    Open, high and low are adjusted by adj_close / close of their own row, beside adj_close; close is as it was paid. Retrievals
    come oldest first: the newest that has a session gives its bar, and the newest that has two sessions that follow each other
    gives the return between them, so that a later split never looks like a fall. O(articles + sessions).
    """
    days, values, returns = _joined([_within(one, sessions) for one in bars])
    if len(days):
        span = sessions[(sessions >= days[0]) & (sessions <= days[-1])]
    else:
        mine = [one.day for one in news]
        span = sessions[(sessions >= min(mine, default=0)) & (sessions <= max(mine, default=-1))]
    by_day: dict[int, list[News]] = defaultdict(list)
    for one in news:
        by_day[one.day].append(one)
    state = _Decay(rate)
    earlier = sorted(day for day in by_day if len(span) and day < span[0])
    for day in earlier:
        state.add(day, _scores(by_day[day]))
    market = _market(span, days, values, returns, window)
    rows = []
    for day, *bar in zip(span.tolist(), *market.values(), strict=True):
        found = by_day.get(day, [])
        scores = _scores(found)
        state.add(day, scores)
        row = {"symbol": symbol, "session": day_of(day), **dict(zip(market, bar, strict=True))}
        rows.append({**row, **_said(found, scores), **state.row(day)})
    return rows


class _Decay:
    """The last mean, and when it was."""

    def __init__(self, rate: float) -> None:
        self.rate, self.last = rate, NEUTRAL
        self.since: int | None = None

    def add(self, day: int, scores: Sequence[float]) -> None:
        if scores:
            self.last, self.since = sum(scores) / len(scores), day

    def row(self, day: int) -> dict[str, Any]:
        if self.since is None:
            return {"decayed": None, "days_since_news": None, "scaled_sentiment": None}
        decayed = decay(self.last, day - self.since, self.rate)
        return {"decayed": decayed, "days_since_news": day - self.since, "scaled_sentiment": scaled(decayed)}


def decay(score: float, days: int, rate: float = 0.05) -> float:
    """3 + (S − 3) · exp(−rate · days); the score itself on its day."""
    return score if days == 0 else NEUTRAL + (score - NEUTRAL) * math.exp(-rate * days)


def _scores(found: Sequence[News]) -> list[float]:
    return sorted(one.score for one in found if not one.copy and one.score is not None)


def _said(found: Sequence[News], scores: Sequence[float]) -> dict[str, Any]:
    said: dict[str, Any] = {
        "articles": sum(not one.copy for one in found),
        "copies": sum(one.copy for one in found),
        "scored": len(scores),
        "news_flag": int(bool(scores)),
        "mean": None,
        "max_abs": None,
        "share_negative": None,
    }
    if scores:
        said["mean"] = sum(scores) / len(scores)
        said["max_abs"] = max(abs(score - NEUTRAL) for score in scores) / 2
        said["share_negative"] = sum(score < NEUTRAL for score in scores) / len(scores)
    return said


def _market(span: Days, days: Days, values: Numbers, returns: Numbers, window: int) -> dict[str, list[float | None]]:
    """The market's columns for the sessions of `span` [S], from the bars of `days`; None where there is nothing to tell."""
    bars, change = np.full((len(span), len(PRICES)), np.nan), np.full(len(span), np.nan)
    _, at, place = np.intersect1d(span, days, assume_unique=True, return_indices=True)
    bars[at], change[at] = values[place], returns[place]
    opened, high, low, close, adjusted, volume = bars.T
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = adjusted / close
        found = {"open": opened * factor, "high": high * factor, "low": low * factor, "close": close, "adj_close": adjusted}
    found |= {"volume": volume, "volume_z": _standing(volume, window), "log_return": change}
    return {name: [one if math.isfinite(one) else None for one in column.tolist()] for name, column in found.items()}


def _standing(volume: Numbers, window: int) -> Numbers:
    """[S]: deviations above the mean of the `window` sessions before it; NaN for the first ones and where they do not differ."""
    found = np.full(len(volume), np.nan)
    if len(volume) <= window:
        return found
    # Rows of their own in memory, so that each sum is that of its window alone, wherever the series begins.
    before = np.ascontiguousarray(np.lib.stride_tricks.sliding_window_view(volume, window)[:-1])
    mean, deviation = before.mean(1), before.std(1)
    for i in np.flatnonzero(np.isnan(mean)):
        past = before[i][~np.isnan(before[i])]
        if len(past) > 1:
            mean[i], deviation[i] = past.mean(), past.std()
    spread = deviation > 0
    found[window:][spread] = (volume[window:][spread] - mean[spread]) / deviation[spread]
    return found


def _within(bars: Bars, sessions: Days) -> Bars:
    """Without days that are no sessions: a stray bar of a Saturday would end one return and begin the next."""
    keep = np.isin(bars.days, sessions)
    return Bars(bars.days[keep], bars.values[keep])


def _joined(bars: Sequence[Bars]) -> tuple[Days, Numbers, Numbers]:
    """Days [N] of all retrievals, the newest bar of each, the newest return into it."""
    days = np.unique(np.concatenate([one.days for one in bars])) if bars else np.empty(0, np.int64)
    values, returns = np.full((len(days), len(PRICES)), np.nan), np.full(len(days), np.nan)
    for one in bars:
        at = np.searchsorted(days, one.days)
        values[at] = one.values
        follows = np.flatnonzero(np.diff(at) == 1) + 1  # a session that only this retrieval lacks has no return
        adjusted = one.values[:, PRICES.index("adj_close")]
        with np.errstate(divide="ignore", invalid="ignore"):
            step = np.log(adjusted[follows] / adjusted[follows - 1])
        known = np.isfinite(step)
        returns[at[follows][known]] = step[known]
    return days, values, returns
