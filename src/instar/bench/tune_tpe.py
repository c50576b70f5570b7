"""The tree-structured Parzen estimator of Optuna, asked for one setting at a time.

Bergstra, Bardenet, Bengio, Kégl, "Algorithms for Hyper-Parameter Optimization", NeurIPS 2011.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from instar import extras
from instar.bench.tune import Tried
from instar.cards import Direction, Knob

STARTUP = 4
"""Trials with a figure that are drawn at random before the estimator is asked. The default setting is none of them."""


def propose(
    method: dict[str, Knob], problem: dict[str, Knob], slug: str, index: int, tried: Sequence[Tried], direction: Direction
) -> dict[str, Any]:
    """The setting of trial `index` after those `tried`: {"method": {…}, "problem": {…}}; empty for trial 0.

    A function of its arguments alone: the study is made anew from the figures. The default setting does not say where in the
    space it lies, and failures have no figure: nothing is learnt from either. Raises MissingExtraError.
    """
    optuna = extras.require("optuna", "tuning")
    if index == 0:
        return {}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    seed = int.from_bytes(hashlib.sha256(f"{slug}/{index}".encode()).digest()[:4])
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP)
    study = optuna.create_study(sampler=sampler, direction="minimize" if direction == "lower" else "maximize")
    knobs = {("problem", name): knob for name, knob in sorted(problem.items())}
    knobs |= {("method", name): knob for name, knob in sorted(method.items())}
    space = {f"{kind}.{name}": _distribution(optuna, knob) for (kind, name), knob in knobs.items()}
    for setting, value in tried:
        if setting and value is not None:
            given = {f"{kind}.{name}": _stored(knob, setting[kind][name]) for (kind, name), knob in knobs.items()}
            study.add_trial(optuna.trial.create_trial(params=given, distributions=space, value=value))
        else:
            study.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.FAIL))
    asked = study.ask(space)
    found: dict[str, Any] = {"problem": {}, "method": {}}
    for (kind, name), knob in knobs.items():
        found[kind][name] = _meant(knob, asked.params[f"{kind}.{name}"])
    return found


def _distribution(optuna: Any, knob: Knob) -> Any:
    if knob.choices is not None:  # by place: a choice may be a list
        return optuna.distributions.CategoricalDistribution(list(range(len(knob.choices))))
    assert knob.range is not None  # the card's schema says one of the two
    low, high = knob.range
    if knob.integer:
        return optuna.distributions.IntDistribution(int(low), int(high), log=knob.scale == "log")
    return optuna.distributions.FloatDistribution(low, high, log=knob.scale == "log")


def _stored(knob: Knob, value: Any) -> Any:
    return value if knob.choices is None else knob.choices.index(value)


def _meant(knob: Knob, value: Any) -> Any:
    if knob.choices is not None:
        return knob.choices[value]
    assert knob.range is not None
    return int(value) if knob.integer else min(max(float(f"{value:.4g}"), knob.range[0]), knob.range[1])
