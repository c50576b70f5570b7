"""Tables and arrays around a forecaster: `fit`, `predict` and `cross_validation`, the same for all methods."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instar import catalogue
from instar.bench.seeds import initialising
from instar.data import cells, frames
from instar.data.panel import Panel, Values, of_array
from instar.errors import DataError, ShapeError
from instar.forecasting import residuals
from instar.interfaces import Forecaster, Monitor


def fit(
    forecaster: Forecaster,
    frame: Any,
    *,
    known: Sequence[str] = (),
    calibration: int = 0,
    steps: int | None = None,
    seed: int = 0,
    monitor: Monitor | None = None,
) -> Forecaster:
    """See `Forecaster.fit`."""
    panel = read(frame, known)
    teaching = panel
    if calibration:
        if calibration < forecaster.horizon:
            raise DataError(f"Calibration needs a horizon of rows, {forecaster.horizon}, or more; received {calibration}.")
        if calibration >= len(panel):
            raise DataError(f"{calibration} calibration rows leave none of {len(panel)} to learn from.")
        teaching = panel.until(len(panel) - calibration)
    prepare(forecaster, teaching, seed)
    forecaster.learn(teaching, steps=steps, seed=seed, monitor=monitor)
    forecaster.kept = panel.tail(forecaster.reach)
    forecaster.frame = None if isinstance(frame, np.ndarray) else cells.maker(frame)
    forecaster.errors = residuals.errors(forecaster, panel, calibration) if calibration else None
    return forecaster


def prepare(forecaster: Forecaster, panel: Panel, seed: int) -> None:
    """Fresh parameters, drawn by the seed. Raises DataError for covariates that nobody would read."""
    if panel.names and not forecaster.covariates:
        takers = [slug for slug, card in catalogue.methods().items() if card.capability("covariates")]
        raise DataError(
            f"{name_of(forecaster)} reads no covariates, but the table has {', '.join(panel.names[:6])}. Leave them out, or take "
            f"one of {', '.join(takers)}."
        )
    with initialising(seed):
        forecaster.prepare(panel)


def predict(forecaster: Forecaster, h: int | None, frame: Any, *, future: Any = None, quantiles: Sequence[float] = ()) -> Any:
    """See `Forecaster.predict`."""
    h = forecaster.horizon if h is None else h
    if not 1 <= h <= forecaster.horizon:
        raise ShapeError(f"This forecaster was made for 1 to {forecaster.horizon} steps; received h={h}.")
    if forecaster.kept is None:
        raise ShapeError("Nothing was fitted yet: call fit(frame) first.")
    panel, given = forecaster.kept, frame
    known = _known(panel)
    if frame is not None:
        panel = read(frame, known)
    if any(panel.known):
        if future is None:
            raise DataError(f"Give future= with {', '.join(known)}: said to be known ahead.")
        panel = frames.extended(panel, future, forecaster.horizon)
    ahead = from_own_ends(forecaster, panel)[:h]
    spread = residuals.spread(forecaster, panel.ids, quantiles)[:h] if quantiles else None
    if isinstance(given, np.ndarray) or (given is None and forecaster.frame is None and _counted(panel)):
        flat = given is not None and given.ndim == 1
        found = ahead if spread is None else ahead[..., None] + spread
        return found[:, 0] if flat else found
    columns = _columns(panel, panel.ends, h)
    columns[name_of(forecaster)] = ahead.T.ravel()
    for place, level in enumerate(quantiles):
        assert spread is not None
        columns[f"{name_of(forecaster)}-q-{100 * level:g}"] = (ahead + spread[..., place]).T.ravel()
    return _table(forecaster, given, columns)


def from_own_ends(forecaster: Forecaster, panel: Panel) -> Values:
    """[H, N]: each series from its own end; what other series did after that end is not read."""
    found = np.empty((forecaster.horizon, len(panel.ids)))
    ends = np.array(panel.ends)
    for end in np.unique(ends):
        found[:, ends == end] = forecaster.forecast(panel, [int(end)])[0][:, ends == end]
    return found


def cross_validation(
    forecaster: Forecaster, frame: Any, *, known: Sequence[str] | None, windows: int, step: int | None, refit: bool
) -> Any:
    """See `Forecaster.cross_validation`. The forecaster itself stays as it was."""
    if known is None:
        known = () if forecaster.kept is None else _known(forecaster.kept)
    panel, H = read(frame, known), forecaster.horizon
    step = H if step is None else step
    if windows < 1 or step < 1:
        raise ShapeError(f"Cross-validation expects windows and a step of 1 or more; received {windows} and {step}.")
    origins = [len(panel) - H - step * back for back in reversed(range(windows))]
    if origins[0] < 2:
        raise DataError(f"{windows} windows, {step} rows apart, of {H} rows each need more than the panel's {len(panel)} rows.")
    parts, worker = [], copy.deepcopy(forecaster)
    for number, origin in enumerate(origins):
        if refit or number == 0:
            teaching = panel.until(origin)
            prepare(worker, teaching, 0)
            worker.learn(teaching)
        ahead = worker.forecast(panel, [origin])[0]
        part = _columns(panel, [origin] * len(panel.ids), H)
        part["cutoff"] = np.repeat(panel.grid.stamps(np.array([origin - 1])), len(part[frames.TIME]))
        part[frames.VALUE] = panel.values[origin : origin + H].T.ravel()
        part[name_of(forecaster)] = ahead.T.ravel()
        parts.append(part)
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return columns if isinstance(frame, np.ndarray) else cells.maker(frame)(columns)


def read(frame: Any, known: Sequence[str] = ()) -> Panel:
    """The panel of a table, an array, or a panel."""
    if isinstance(frame, Panel):
        return frame
    return of_array(frame) if isinstance(frame, np.ndarray) else frames.panel(frame, known)


def name_of(forecaster: Forecaster) -> str:
    """How its column is called: the slug of its card, or its class."""
    card = catalogue.of(type(forecaster))
    return card.slug if card else re.sub(r"(?<!^)(?=[A-Z])", "_", type(forecaster).__name__).lower()


def _known(panel: Panel) -> list[str]:
    """The columns of a table whose future is known."""
    return list(dict.fromkeys(frames.sources(panel).values()))


def _columns(panel: Panel, ends: Sequence[int], h: int) -> dict[str, NDArray[Any]]:
    """unique_id and ds of h rows after each series' end."""
    ids = np.empty(len(panel.ids), dtype=int if {type(name) for name in panel.ids} == {int} else object)
    ids[:] = panel.ids
    stamps = [panel.grid.stamps(np.arange(end, end + h)) for end in ends]
    return {frames.ID: np.repeat(ids, h), frames.TIME: np.concatenate(stamps)}


def _counted(panel: Panel) -> bool:
    return panel.grid.kind == "number" and panel.ids == tuple(map(str, range(len(panel.ids))))


def _table(forecaster: Forecaster, given: Any, columns: dict[str, NDArray[Any]]) -> Any:
    """A table of the kind that was given; columns alone where that is not known any more."""
    make = cells.maker(given) if given is not None and not isinstance(given, Panel) else forecaster.frame
    return make(columns) if make is not None else columns
