"""The contract of `Forecaster`: what holds before anything is asked of quality. The first of it: nothing looks ahead."""

from __future__ import annotations

import inspect
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from instar import catalogue, formula
from instar.checks.arguments import constructed, keeps, refused
from instar.checks.forecaster_world import (
    CONTEXT,
    HORIZON,
    LEVELS,
    ROWS,
    SCALES,
    STEPS,
    apart,
    build,
    differ,
    learnt,
    panel,
    table,
)
from instar.checks.subject import Check, Subject
from instar.data.panel import Panel
from instar.errors import ContractError, DataError
from instar.forecasting import framing, saved

_CLOSE = 1e-4
"""Allowed difference of two ways to the same forecast, in deviations of a series: networks compute in float32."""


def check_arguments(subject: Subject) -> None:
    """Every argument is kept under its name; presets and ends of knobs construct."""
    known = inspect.signature(subject.cls).parameters
    if list(known)[:2] != ["horizon", "context"] or any(p.default is p.empty for p in list(known.values())[1:]):
        raise ContractError(f"The constructor must read Forecaster(horizon, *, context=…, …); it has {', '.join(known)}.")
    for what, values, forecaster in constructed(subject, lambda values: subject.cls(**{"horizon": HORIZON, **values})):
        keeps(subject, what, {"horizon": HORIZON, **values}, forecaster, "a saved one is rebuilt from it")


def check_no_look_ahead(subject: Subject) -> None:
    """Neither what comes after an origin nor what lies before its reach changes a forecast; nor does it write into the panel."""
    whole = panel()
    forecaster = learnt(subject, whole)
    for origin in (CONTEXT, 30, ROWS - HORIZON):
        found = forecaster.forecast(whole, [origin])
        changed = whole.values.copy()
        changed[origin:] = 1e3
        changed[: max(0, origin - forecaster.reach)] = -1e3
        for what, other in (("cut off after", whole.until(origin)), ("changed outside", replace(whole, values=changed))):
            if apart(found, forecaster.forecast(other, [origin])) > 0:
                raise ContractError(
                    f"The forecast at origin {origin} is another one when the panel is {what} its context of "
                    f"{forecaster.reach} rows: something is read that is not to be read."
                )
    if not np.array_equal(whole.values, panel().values):
        raise ContractError("learn or forecast changed the panel that it was given.")


def check_covariates(subject: Subject) -> None:
    """Of covariates only what is known is read, within reach and horizon; who reads none refuses a panel that has some."""
    told = np.random.default_rng(0).normal(size=(ROWS, 2))
    given = replace(panel(), covariates=told, names=("known", "unknown"), known=(True, False))
    if not subject.cls.covariates:
        refused("a panel with covariates", lambda: learnt(subject, given), DataError)
        return
    forecaster, origin = learnt(subject, given), 30
    changed = told.copy()
    changed[origin:, 1] = changed[origin + HORIZON :, 0] = 1e3
    changed[: max(0, origin - forecaster.reach)] = -1e3
    found = forecaster.forecast(given, [origin])
    if apart(found, forecaster.forecast(replace(given, covariates=changed), [origin])) > 0:
        raise ContractError("A forecast changes with what an unknown covariate is later, or with covariates outside its rows.")


def check_batches(subject: Subject) -> None:
    """Every origin has its forecast, the same however many are computed at a time."""
    given = panel()
    forecaster = learnt(subject, given)
    origins = list(range(CONTEXT, ROWS + 1, 5))
    whole = forecaster.forecast(given, origins)
    if whole.shape != (len(origins), HORIZON, len(given.ids)) or whole.dtype != np.float64:
        raise ContractError(f"Expected float64 {[len(origins), HORIZON, len(given.ids)]}, received {whole.dtype} {whole.shape}.")
    for rows in (1, 5, len(origins)):
        found = forecaster.forecast(given, origins, rows=rows)
        if len(found) != len(origins):
            raise ContractError(f"Computed {rows} at a time, there are {len(found)} forecasts of {len(origins)}.")
        if (worst := apart(whole, found)) > _CLOSE:
            raise ContractError(f"Computed {rows} at a time, forecasts differ by {worst:.1e} deviations.")
    backwards = forecaster.forecast(given, origins[::-1])
    if apart(whole, backwards[::-1]) > _CLOSE:
        raise ContractError("The order of the origins changes forecasts.")


def check_deterministic(subject: Subject) -> None:
    """The same panel, steps and seed give the same bits, whatever was drawn before; the global generator is left alone."""
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = learnt(subject, seed=3)
    if not torch.equal(state, torch.get_rng_state()):
        raise ContractError("learn draws from the global generator; draw from instar.bench.seeds.stream(seed, name).")
    torch.manual_seed(2)
    if names := differ(first, learnt(subject, seed=3)):
        raise ContractError(f"Two that learnt the same differ in {names[0]}.")


def check_monitor(subject: Subject) -> None:
    """Training tells of every step; what learns nothing has no parameters."""
    told: list[int] = []

    def monitor(step: int, loss: float) -> None:
        told.append(step)

    forecaster = build(subject)
    framing.prepare(forecaster, panel(), 0)
    before = {name: value.clone() for name, value in forecaster.state_dict().items()}
    forecaster.learn(panel(), steps=3, monitor=monitor)
    if subject.cls.trained:
        changed = any(not torch.equal(value, before[name]) for name, value in forecaster.state_dict().items() if name in before)
        if told[-3:] != [1, 2, 3] or not changed:
            raise ContractError(
                f"Three steps were asked for; it told of {told} and {'learnt' if changed else 'nothing changed'}."
            )
    elif any(p.requires_grad for p in forecaster.parameters()):
        raise ContractError("It says that it is not trained, but has parameters.")


def check_missing(subject: Subject) -> None:
    """Gaps, a series that has not begun and a constant one give finite forecasts, and others' forecasts are not lost."""
    given = panel()
    values = given.values.copy()
    values[20:24, 0] = values[::7, 1] = np.nan
    values[: CONTEXT + 4, 2] = np.nan
    for what, holes in (("gaps", values), ("a constant series", np.where([True, False, False], 7.0, given.values))):
        broken = replace(given, values=holes)
        forecaster = learnt(subject, broken)
        found = forecaster.forecast(broken, list(range(1, ROWS + 1, 6)))
        if not np.isfinite(found).all():
            raise ContractError(f"With {what}, forecasts are not finite.")
    short = learnt(subject, given).forecast(given, [1, 2, CONTEXT // 2])
    if not np.isfinite(short).all():
        raise ContractError("From fewer rows than the context, forecasts are not finite.")


def check_frames(subject: Subject) -> None:
    """Tables in any order, series that end at different times, arrays: each series goes on from its own end."""
    given = table()
    forecaster = build(subject).fit(given, steps=STEPS)
    found = forecaster.predict()
    name = framing.name_of(forecaster)
    if list(found) != ["unique_id", "ds", name] or len(found[name]) != 3 * HORIZON:
        raise ContractError(
            f"Expected unique_id, ds and {name} of {3 * HORIZON} rows, received {', '.join(found)} of {len(found[name])}."
        )
    last = given["ds"].max()
    ahead = last + np.arange(1, HORIZON + 1).astype("timedelta64[h]")
    if not all((found["ds"][found["unique_id"] == one] == ahead).all() for one in "abc"):
        raise ContractError(f"Forecasts must stand at the {HORIZON} hours after {last}, received {found['ds']}.")
    kept = (given["unique_id"] != "a") | (given["ds"] <= last - np.timedelta64(5, "h"))
    ragged = forecaster.predict(frame={key: column[kept] for key, column in given.items()})
    if ragged["ds"][ragged["unique_id"] == "a"].min() != last - np.timedelta64(4, "h"):
        raise ContractError("A series that ends five hours before the others must be forecast from its own end.")
    if not np.isfinite(ragged[name]).all():
        raise ContractError("Series beside one that ends earlier have no finite forecast.")
    array = build(subject)
    values = panel().values
    if np.shape(array.fit(values, steps=STEPS).predict(2)) != (2, 3):
        raise ContractError("Of an array [T, 3], predict(2) must be an array [2, 3].")


def check_new_series(subject: Subject) -> None:
    """Series that it did not learn from are forecast, by those tagged so; others refuse them in words."""
    forecaster = build(subject).fit(table(), steps=STEPS)
    new = table(names=("b", "new", "a"))
    call = partial(forecaster.predict, frame=new)
    if not subject.card.capability("any_series"):
        refused("a series that was not learnt", call)
        return
    found = call()
    if not np.isfinite(found[framing.name_of(forecaster)]).all() or set(found["unique_id"]) != {"a", "b", "new"}:
        raise ContractError("A series that was not learnt has no finite forecast.")


def check_saved(subject: Subject) -> None:
    """A saved forecaster has the same bits, and predicts the same without a table."""
    forecaster = build(subject).fit(table(), steps=STEPS, calibration=8)
    with tempfile.TemporaryDirectory() as folder, catalogue.holding(subject.card, subject.cls):
        forecaster.save(Path(folder))
        loaded = saved.load(Path(folder))
    if names := differ(forecaster, loaded):
        raise ContractError(f"Saved and loaded it differs in {names[0]}: keep what was learnt in parameters and buffers.")
    ours, theirs = (one.predict(3, quantiles=[0.1, 0.9]) for one in (forecaster, loaded))
    for key, column in ours.items():
        if not np.array_equal(column, theirs[key]):
            raise ContractError(f"Saved and loaded it predicts another {key}: something that was learnt is not kept.")
    low, high = (ours[f"{framing.name_of(forecaster)}-q-{level}"] for level in (10, 90))
    if not (low <= high).all():
        raise ContractError("The quantile 0.1 lies above the quantile 0.9.")


def check_cross_validation(subject: Subject) -> None:
    """Each cutoff gives what a forecast at that time would have been; the forecaster stays as it was."""
    forecaster = build(subject).fit(table(), steps=STEPS)
    before = forecaster.predict()
    found = forecaster.cross_validation(table(), windows=2, step=3)
    name = framing.name_of(forecaster)
    if len(found[name]) != 2 * 3 * HORIZON or not (found["cutoff"] < found["ds"]).all():
        raise ContractError(f"Expected {2 * 3 * HORIZON} rows, all later than their cutoff; received {len(found[name])}.")
    if not all(np.array_equal(column, forecaster.predict()[key]) for key, column in before.items()):
        raise ContractError("cross_validation changed the forecaster.")


def check_refusals(subject: Subject) -> None:
    """What cannot be right is an InstarError."""
    forecaster, given = build(subject).fit(table(), steps=STEPS), table()
    for what, call in {
        "a horizon of 0": lambda: subject.cls(0, **subject.arguments),
        "a context of 0": lambda: build(subject, context=0),
        "predict before fit": lambda: build(subject).predict(),
        "more steps than the horizon": lambda: forecaster.predict(HORIZON + 1),
        "an origin before any row": lambda: forecaster.forecast(panel(), [0]),
        "text among values": lambda: build(subject).fit({**given, "y": ["many", *given["y"][1:]]}),
        "an infinite value": lambda: build(subject).fit({**given, "y": np.where(given["y"] > 300, np.inf, given["y"])}),
        "a time twice": lambda: build(subject).fit({**given, "ds": np.repeat(given["ds"][::2], 2)}),
        "a series without values": lambda: build(subject).fit(
            {**given, "y": np.where(given["unique_id"] == "a", np.nan, given["y"])}
        ),
        "no column y": lambda: build(subject).fit({"unique_id": given["unique_id"], "ds": given["ds"]}),
        "quantiles without calibration": lambda: forecaster.predict(quantiles=[0.5]),
    }.items():
        refused(what, call)
    if subject.cls.trained:
        refused("fewer rows than a window", lambda: build(subject).fit(panel().values[: CONTEXT + HORIZON - 1]))


def check_equivariant(subject: Subject) -> None:
    """A series that is shifted and stretched after training is forecast shifted and stretched."""
    _equivariant(subject, 3.0)


def check_shift_equivariant(subject: Subject) -> None:
    """A series that is shifted after training is forecast shifted."""
    _equivariant(subject, 1.0)


def check_costs(subject: Subject) -> None:
    """Bytes of parameters, and matrix products of a forecast, are what the card's formulas say of the default form."""
    forecaster = learnt(replace(subject, arguments={}))
    cost = subject.card.cost
    assert cost is not None
    values = catalogue.variables(subject.cls, {}, N=3, L=CONTEXT, P=HORIZON)
    held = 4.0 * sum(p.numel() for p in forecaster.parameters() if p.requires_grad)
    if (said := formula.evaluate(cost.state, values)) != held:
        raise ContractError(f"The card says {said:g} bytes of what is trained; there are {held:g}.")
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        forecaster.forecast(panel(), [CONTEXT])
    counted, said = counter.get_total_flops(), formula.evaluate(cost.flops, values)
    if not 0.98 * counted <= said <= 1.02 * counted:
        raise ContractError(f"flops is {said:g} by the card's formula; {counted} were counted in matrix products.")


def _equivariant(subject: Subject, factor: float) -> None:
    given = panel()
    forecaster = learnt(subject, given)
    shift = 2.0 * np.array(SCALES)
    moved: Panel = replace(given, values=(given.values - LEVELS) * factor + LEVELS + shift)
    origins = [CONTEXT, 40, ROWS]
    expected = (forecaster.forecast(given, origins) - LEVELS) * factor + LEVELS + shift
    if (worst := apart(expected, forecaster.forecast(moved, origins))) > 5e-3:
        raise ContractError(f"Series stretched by {factor} and shifted are forecast {worst:.1e} deviations off.")


CONTRACT = (
    Check("arguments", check_arguments),
    Check("no_look_ahead", check_no_look_ahead),
    Check("covariates", check_covariates),
    Check("batches", check_batches),
    Check("deterministic", check_deterministic),
    Check("monitor", check_monitor),
    Check("missing", check_missing),
    Check("frames", check_frames),
    Check("new_series", check_new_series),
    Check("saved", check_saved),
    Check("cross_validation", check_cross_validation),
    Check("refusals", check_refusals),
    Check("equivariant", check_equivariant, needs="equivariant"),
    Check("shift_equivariant", check_shift_equivariant, needs="shift_equivariant"),
    Check("costs", check_costs, costs=True),
)
