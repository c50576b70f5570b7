"""Series to forecast: public sets by name, a recording that ships with a dependency, and the user's own table."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from instar.data import datasets, frames
from instar.data.cells import named, numbers, times
from instar.data.panel import Panel, of_array
from instar.data.time_grid import place
from instar.errors import DataError, UnknownNameError
from instar.gate import rows

_TIMES = ("ds", "date", "time", "timestamp", "datetime")
_NAMED = {name: name.lower() for name in ("ETTh1", "ETTh2", "ETTm1", "exchange_rate", "illness", "los_speed")}
_SEASONS = {"los_speed": 288}  # its times are not in the file
_MONTHS = {"ETTh1": 30 * 24, "ETTh2": 30 * 24, "ETTm1": 30 * 24 * 4}  # rows of a month, as the ETT protocol counts them
EMBEDDED = "eeg"


@dataclass(frozen=True)
class ForecastSet:
    """A panel, its season, and where training and validation end. What lies after `last` belongs to no split."""

    name: str
    panel: Panel
    season: int
    train: int
    valid: int
    last: int


def names() -> list[str]:
    """The sets that have a name."""
    return sorted([EMBEDDED, *_NAMED])


def forecast_set(
    data: str | None,
    *,
    time: str | None = None,
    target: str | Sequence[str] | None = None,
    covariates: Sequence[str] = (),
    season: int = 0,
) -> ForecastSet:
    """A set by its name, or the user's table (.csv, .tsv, .jsonl, .parquet).

    A table with a column unique_id is long, one row for each series and time, its value in `target` ("y" by default); any other
    is wide, one row for each time and one column for each series: those that `target` names, or all. time: the column of times
    (by default one called ds, date, time or timestamp; rows are counted where there is none). Training, validation and test are
    70, 10 and 20 % of the rows in order; of the ETT sets 12, 4 and 4 months of 30 days. Raises DataError, UnknownNameError.
    """
    name = EMBEDDED if data is None else data
    if name == EMBEDDED:
        panel = _eeg()
    elif name in _NAMED:
        panel = _wide(rows.columns(datasets.locate(_NAMED[name])[0]), name, None if name == "los_speed" else "date", None, ())
    elif not Path(name).suffix and not Path(name).exists():
        raise UnknownNameError.among("set of series (and there is no such file)", name, names())
    else:
        panel = _table(Path(name), time, target, covariates)
        name = Path(name).name
    T = len(panel)
    month = _MONTHS.get(name)
    ends = (7 * T // 10, T - T // 5, T) if month is None else (12 * month, 16 * month, 20 * month)
    return ForecastSet(name, panel, season or _SEASONS.get(name, panel.grid.season), *ends)


def _eeg() -> Panel:
    """Four channels of an electroencephalogram, 800 rows: a sample of matplotlib's own, which is a dependency."""
    import matplotlib

    path = Path(matplotlib.get_data_path()) / "sample_data" / "eeg.dat"
    if not path.is_file():
        raise DataError(f"There is no file {path}: this build of matplotlib lacks its samples. Name other data.")
    found = np.fromfile(path, dtype="<f8").reshape(-1, 4)
    return dataclasses.replace(of_array(found), ids=("channel 1", "channel 2", "channel 3", "channel 4"))


def _table(path: Path, time: str | None, target: str | Sequence[str] | None, covariates: Sequence[str]) -> Panel:
    given = named(rows.columns(path), path)
    if not given or not next(iter(given.values())):
        raise DataError(f"{path} holds no row below its header.")
    chosen = next((name for name in given if name.lower() in _TIMES), None) if time is None else time
    wanted = [target] if isinstance(target, str) else target
    for name in [*([time] if time else []), *(wanted or ()), *covariates]:
        if name not in given:
            raise UnknownNameError.among(f"column of {path.name}", name, given)
    if frames.ID not in given:
        return _wide(given, str(path), chosen, wanted, covariates)
    if chosen is None or len(wanted or ()) > 1:
        raise DataError(f"{path} is long (it has {frames.ID}): say which column holds the times, and one target.")
    value = wanted[0] if wanted else frames.VALUE
    if value not in given:
        raise DataError(f"{path} has no column {value}; it has {', '.join(given)}. Say which one holds the values: target=NAME.")
    kept = {frames.ID: given[frames.ID], frames.TIME: given[chosen], frames.VALUE: given[value]}
    return frames.panel({**kept, **{name: given[name] for name in covariates}})


def _wide(
    given: dict[str, list[Any]], where: str, time: str | None, target: Sequence[str] | None, covariates: Sequence[str]
) -> Panel:
    """One column for each series. Rows come in any order of their times; gaps between them are missing values."""
    chosen = list(target) if target else [name for name in given if name != time and name not in covariates]
    if not chosen:
        raise DataError(f"{where} has no series beside its times.")
    parts = [np.stack([numbers(_cells(given[n]), n) for n in group], axis=1) if group else None for group in (chosen, covariates)]
    values, beside = parts[0], parts[1]
    assert values is not None
    count = len(values)
    grid, ordered = of_array(values).grid, np.arange(count)
    if time is not None:
        grid, ordered = place(*times(_cells(given[time]), time))
        if len(twice := np.flatnonzero(np.bincount(ordered) > 1)):
            raise DataError(f"{where} has two rows at {grid.stamps(twice[:1])[0]}. Times of a wide table appear once.")
    T = int(ordered.max()) + 1
    if 100 * count < T:
        raise DataError(f"{where} spans {T} times, of which it has {count}. Is a time far off?")
    full = np.full((T, len(chosen)), np.nan)
    full[ordered] = values
    further = np.full((T, len(covariates)), np.nan)
    if beside is not None:
        further[ordered] = beside
    if (empty := np.isnan(full).all(0)).any():
        raise DataError(f"{where}: the series {chosen[int(empty.argmax())]} has no value at all. Remove it.")
    return Panel(tuple(chosen), full, grid, (T,) * len(chosen), further, tuple(covariates), (False,) * len(covariates))


def _cells(column: Sequence[Any]) -> Any:
    return np.array(column, dtype=object)
