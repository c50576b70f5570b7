"""Titles and ticks of axes, in the units that people read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from instar.cards import Metric
from instar.report import units


def name(metric: Metric) -> str:
    """A metric as the title of an axis."""
    title = units.sentence(metric.title)
    return title if metric.unit.lower() in title.lower() else f"{title}, {metric.unit}"


def better(metric: Metric) -> str:
    """Which way is better."""
    return f"{metric.direction} is better"


def length_ticks(axes: Any, lengths: Sequence[float]) -> None:
    """A tick at every measured length and nowhere else."""
    from matplotlib.ticker import NullLocator

    axes.set_xticks(list(lengths), [units.number(x, 6) for x in lengths], rotation=0 if len(lengths) < 6 else 35)
    axes.xaxis.set_minor_locator(NullLocator())


def log_ticks(axes: Any, which: str, unit: str, values: Sequence[float]) -> None:
    """A handful of ticks in readable units."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    axis = getattr(axes, f"{which}axis")
    low, high = getattr(axes, f"get_{which}lim")()
    powers = unit.startswith(("byte", "B"))
    ladder = [2.0**k for k in range(61)] if powers else [m * 10.0**e for e in range(-12, 18) for m in (1, 2, 5)]
    ticks = [t for t in ladder if low <= t <= high]
    if len(ticks) > 8 and not powers:
        ticks = [t for t in ticks if f"{t:e}".startswith("1.0")]
    ticks = ticks[:: math.ceil(len(ticks) / 5)] if ticks else []
    if len(ticks) < 3:  # less than a decade: even steps
        factor = units.scale(unit, max(values))[0]
        ticks = [t * factor for t in MaxNLocator(4).tick_values(low / factor, high / factor) if low <= t * factor <= high]
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    # Rates would be long labels: their unit stands on the axis, and the labels keep "34 k".
    axis.set_major_formatter(
        FuncFormatter(lambda v, _: units.quantity(v, unit, 3).removesuffix(unit if "/" in unit else "").strip())
    )
