"""The table of FNSPID, bug for bug: scores by calendar day, gaps filled on all days, then joined to the days with a price.

What it does wrong is kept: times that were moved in the wrong direction (see `times.shifted`), so that part of the news stands
before the session that could know it; days outside the span of the news are lost, and so are the scores of a weekend but for
their decay.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

import numpy as np

from instar.data.finance.features import Bars, News, Numbers, decay
from instar.data.finance.scoring import HIGHEST, LOWEST, scaled
from instar.data.finance.sessions import day_of
from instar.errors import DataError

COLUMNS = ("Open", "High", "Low", "Close", "Adj close", "Volume", "Sentiment_gpt", "News_flag", "Scaled_sentiment")


def integrate(news: Sequence[News], bars: Bars) -> tuple[list[date], Numbers]:
    """(days, values [days, 9] in the order of `COLUMNS`).

        S_t = mean of the day's scores, clipped to [1, 5];   without news  S_t = 3 + (S_l − 3) · exp(−0.05 · (t − l))
        News_flag = 1 on days with news;   Scaled_sentiment = (S_t − 0.9999) / 4

    for each calendar day from the first with news to the last. Raises DataError where there are no scores.
    """
    by_day: dict[int, list[float]] = {}
    for one in news:
        if one.score is not None:
            by_day.setdefault(one.day, []).append(min(max(one.score, LOWEST), HIGHEST))
    if not by_day:
        raise DataError("There is no scored article, so that FNSPID's table has no rows.")
    first, last = min(by_day), max(by_day)
    score, since = 0.0, first
    table: dict[int, tuple[float, float]] = {}
    for day in range(first, last + 1):
        if day in by_day:
            score, since = sum(by_day[day]) / len(by_day[day]), day
        table[day] = (decay(score, day - since), float(day in by_day))
    kept = [place for place, day in enumerate(bars.days.tolist()) if day in table]
    days = [int(bars.days[place]) for place in kept]
    said = np.array([[table[day][0], table[day][1], scaled(table[day][0])] for day in days]).reshape(-1, 3)
    return [day_of(day) for day in days], np.hstack([bars.values[kept], said])
