"""Long tables, as Nixtla's libraries take them, read into panels: unique_id, ds, y, and covariates."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instar.data import time_grid
from instar.data.cells import Columns, columns, numbers, times
from instar.data.panel import Id, Panel, Values
from instar.errors import DataError

ID, TIME, VALUE = "unique_id", "ds", "y"
_MOST = 200_000_000
"""Cells of a panel: more come of one stray time, not of data."""


def panel(frame: Any, known: Sequence[str] = ()) -> Panel:
    """The panel of a table: rows in any order, gaps become missing values, series may begin and end where they like.

    A covariate that is the same for all series at all times is one; otherwise each series has its own, named column[series].
    Raises DataError for a column that is not there, text among numbers, infinite values, times that appear twice or lie at no
    equal distances, and a series without any value.
    """
    given = columns(frame)
    if lacking := [name for name in (TIME, VALUE) if name not in given]:
        raise DataError(
            f"The table lacks {' and '.join(lacking)}; it has {', '.join(given) or 'no column'}. Expected are {ID} (which "
            f"series), {TIME} (when), {VALUE} (the value), and further columns as covariates."
        )
    further = [name for name in given if name not in (ID, TIME, VALUE)]
    if unknown := [name for name in known if name not in further]:
        raise DataError(f"There is no covariate {', '.join(unknown)}; the table has {', '.join(further) or 'none'}.")
    if not len(given[TIME]):
        raise DataError("The table has no row.")
    ids, series = _series(given)
    said = times(given[TIME], TIME)
    grid, rows = time_grid.place(*said)
    _once(rows, series, ids, said.stamps)
    T, N = int(rows.max()) + 1, len(ids)
    if T * N > _MOST:
        raise DataError(f"The table spans {T} times of {N} series, of which it has {len(rows)} rows. Is a time far off?")

    def spread(name: str) -> Values:
        found = np.full((T, N), np.nan)
        found[rows, series] = numbers(given[name], name)
        return found

    values = spread(VALUE)
    if (empty := np.isnan(values).all(0)).any():
        raise DataError(f"The series {ids[int(empty.argmax())]} has no value at all. Remove it.")
    ends = np.zeros(N, dtype=np.int64)
    np.maximum.at(ends, series, rows + 1)
    covariates, names, flags = _covariates({name: spread(name) for name in further}, ids, known)
    return Panel(ids, values, grid, tuple(ends.tolist()), covariates.reshape(T, len(names)), names, flags)


def sources(before: Panel) -> dict[str, str]:
    """The column of a table that each known covariate of a panel stands for: `price` for price[a] and price[b]."""
    found = {name: name for name, known in zip(before.names, before.known, strict=True) if known}
    for name in before.names:
        column = name.removesuffix(f"[{before.ids[0]}]")
        if column != name and found.keys() >= (each := {f"{column}[{one}]" for one in before.ids}):
            found |= dict.fromkeys(each, column)
    return found


def extended(before: Panel, future: Any, horizon: int) -> Panel:
    """The panel with what a table says of the known covariates up to `horizon` rows after its end.

    Raises DataError for a column that is not there, and for two values of one covariate at one time: what all series shared in
    the past they share in the future.
    """
    given = columns(future)
    source = sources(before)
    if lacking := [name for name in dict.fromkeys((TIME, *source.values())) if name not in given]:
        raise DataError(f"The table of the future lacks {', '.join(lacking)}; it has {', '.join(given) or 'no column'}.")
    said = times(given[TIME], TIME)
    if said.aware != before.grid.aware:
        raise DataError("Times of the future and of the past must both have a time zone, or neither.")
    first, T = min(before.ends), len(before)  # a series that ends earlier is told its future from there on
    rows = before.grid.find(said.stamps, first, T + horizon)
    ids = [_plain(one) for one in given[ID]] if ID in given else [None] * len(rows)
    covariates = np.full((T + horizon, len(before.names)), np.nan)
    covariates[: len(before.covariates)] = before.covariates[: T + horizon]
    place = {name: before.names.index(name) for name in source}
    for column in dict.fromkeys(source.values()):
        shared = column in source
        for row, one, value in zip(rows, ids, numbers(given[column], column).tolist(), strict=True):
            name = column if shared else f"{column}[{one}]"
            if row is None or name not in place or value != value:
                continue
            told = covariates[row, place[name]]
            if not np.isnan(told) and told != value:
                raise DataError(
                    f"The covariate {name} is {told:g} and also {value:g} at {before.grid.stamps(np.array([row]))[0]}. "
                    + ("All series shared it in the past and share it in the future. " if shared else "")
                    + "Give one value for each time."
                )
            covariates[row, place[name]] = value
    return dataclasses.replace(before, covariates=covariates)


def _series(given: Columns) -> tuple[tuple[Id, ...], NDArray[np.int64]]:
    """The series in the order of their first rows, and which one each row belongs to."""
    if ID not in given:
        return ("series",), np.zeros(len(given[TIME]), dtype=np.int64)
    places: dict[Id, int] = {}
    found = np.array([places.setdefault(_plain(name), len(places)) for name in given[ID]])
    if missing := [name for name in places if _lacks(name)]:
        row = int((found == places[missing[0]]).argmax())
        raise DataError(f"{ID} is missing in row {row}; each row says which series it belongs to.")
    return tuple(places), found


def _once(rows: NDArray[np.int64], series: NDArray[np.int64], ids: Sequence[Id], stamps: NDArray[Any]) -> None:
    place = series * (int(rows.max()) + 1) + rows
    order = np.argsort(place, kind="stable")
    if len(twice := np.flatnonzero(np.diff(place[order]) == 0)):
        row = order[twice[0] + 1]
        raise DataError(
            f"The series {ids[series[row]]} has two rows at {stamps[row]}. Where clocks are set back, give times with a zone."
        )


def _covariates(
    found: dict[str, Values], ids: Sequence[Id], known: Sequence[str]
) -> tuple[Values, tuple[str, ...], tuple[bool, ...]]:
    parts: list[Values] = []
    names: list[str] = []
    flags: list[bool] = []
    for name, cells in found.items():
        said = ~np.isnan(cells)
        low = np.where(said, cells, np.inf).min(1)
        shared = bool((np.where(said, cells, -np.inf).max(1) <= low).all())
        if shared:
            low[~np.isfinite(low)] = np.nan
        parts.append(low[:, None] if shared else cells)
        names += [name] if shared else [f"{name}[{one}]" for one in ids]
        flags += [name in known] * (1 if shared else len(ids))
    joined = np.concatenate(parts, axis=1) if parts else np.zeros((0, 0))
    return joined, tuple(names), tuple(flags)


def _lacks(name: Any) -> bool:
    """None, NaN, and pandas.NA, which says nothing even of being itself."""
    return name is None or type(name).__name__ == "NAType" or name != name


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
