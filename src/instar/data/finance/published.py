"""The ten integrated tables that FNSPID publishes, as `load_daily` would give them, with nothing of the future in a row."""

from __future__ import annotations

from typing import Any

import numpy as np

from instar import extras
from instar.data import datasets

_SAFE = 1
"""Sessions by which sentiment is moved back: FNSPID dates an article 8 or 10 hours too early, so that what it files under a day
was out by 10 o'clock UTC of the next, before the close of the session after."""


def published_daily() -> Any:
    """symbol, session, adj_close, volume, log_return, volume_z, decayed, news_flag of ten stocks. Raises what `locate` raises.

    The tables have lost their articles, so that the strict alignment cannot be made from them. Moved back by one session it is
    at least as careful: what stands in row s was out before the close of s. `volume_z` looks at the 20 sessions before.
    """
    pandas = extras.require("pandas", "finance")
    found = []
    for path in sorted(datasets.locate("fnspid_stocks")):
        rows = pandas.read_csv(path)
        rows["session"] = pandas.to_datetime(rows["Date"].str[:10]).dt.date
        rows = rows.drop_duplicates("session").sort_values("session", ignore_index=True)
        volume = rows["Volume"].astype(float)
        before = volume.shift(1).rolling(20)
        found.append(
            pandas.DataFrame(
                {
                    "symbol": path.stem,
                    "session": rows["session"],
                    "adj_close": rows["Adj close"],
                    "volume": volume,
                    "log_return": np.log(rows["Adj close"]).diff(),
                    "volume_z": (volume - before.mean()) / before.std(ddof=0),
                    "decayed": rows["Sentiment_gpt"].shift(_SAFE),
                    "news_flag": rows["News_flag"].shift(_SAFE),
                }
            )
        )
    return pandas.concat(found, ignore_index=True)
