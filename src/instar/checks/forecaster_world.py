"""What checks of forecasters share: small series of very different scales, and forecasters that have learnt from them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from instar.checks.subject import Subject
from instar.data.panel import Panel, of_array
from instar.errors import ContractError
from instar.forecasting import framing
from instar.interfaces import Forecaster

HORIZON, CONTEXT, ROWS, STEPS = 4, 16, 72, 2
SCALES, LEVELS = (1.0, 50.0, 0.02), (0.0, 300.0, -5.0)


def build(subject: Subject, **given: Any) -> Forecaster:
    """A forecaster of a short horizon that has learnt nothing."""
    made = subject.cls(HORIZON, **{"context": CONTEXT, **subject.arguments, **given})
    if not isinstance(made, Forecaster):
        raise ContractError(f"{subject.cls.__name__} is no instar.interfaces.Forecaster: derive the class from it.")
    return made


def panel(rows: int = ROWS, seed: int = 0) -> Panel:
    """Three waves of period 8 under noise, of different scales and levels."""
    draw, t = np.random.default_rng(seed), np.arange(rows)
    waves = [np.sin(2 * math.pi * (t / 8 + phase)) + 0.1 * draw.normal(size=rows) for phase in (0.0, 0.3, 0.6)]
    return of_array(np.stack(waves, axis=1) * SCALES + LEVELS)


def learnt(subject: Subject, given: Panel | None = None, *, steps: int = STEPS, seed: int = 0, **arguments: Any) -> Forecaster:
    """A forecaster that has learnt a little."""
    found, forecaster = given or panel(), build(subject, **arguments)
    framing.prepare(forecaster, found, seed)
    forecaster.learn(found, steps=steps, seed=seed)
    return forecaster


def differ(one: Forecaster, other: Forecaster) -> list[str]:
    """Names of tensors that are not the same to the bit."""
    a, b = one.state_dict(), other.state_dict()
    return [name for name in a.keys() | b.keys() if name not in a or name not in b or not torch.equal(a[name], b[name])]


def apart(one: Any, other: Any, scales: Any = SCALES) -> float:
    """The largest difference of forecasts [W, H, N], in units of each series."""
    return float(np.abs((np.asarray(one) - np.asarray(other)) / np.asarray(scales)).max())


def table(rows: int = ROWS, names: tuple[str, ...] = ("a", "b", "c")) -> dict[str, Any]:
    """The panel as a long table with hours, its rows in disorder."""
    values = panel(rows).values
    hours = np.datetime64("2026-02-27T00:00:00") + np.arange(rows).astype("timedelta64[h]")
    order = np.random.default_rng(1).permutation(rows * len(names))
    ids = np.repeat(np.array(names, dtype=object), rows)
    return {"unique_id": ids[order], "ds": np.tile(hours, len(names))[order], "y": values.T.ravel()[order]}
