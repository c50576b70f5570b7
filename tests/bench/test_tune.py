"""Search over settings: trial 0 is the default, trials stay in the cards' space, and the best is chosen on the figure alone."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from instar.bench import search, tune, tune_tpe
from instar.bench.plan import Plan, Request, prepare
from instar.bench.record import Store
from instar.cards import Knob
from instar.errors import PlanError, UnknownNameError

METHOD = {
    "rate": Knob(range=[0.01, 1.0], scale="log"),
    "size": Knob(range=[1, 9], integer=True),
    "kind": Knob(choices=["a", "b"]),
}
PROBLEM = {"lr": Knob(range=[5e-4, 8e-3], scale="log")}


def test_trial_zero_is_the_default_setting() -> None:
    assert tune.sample(METHOD, PROBLEM, "gla", 0) == {}


def test_trials_are_repeatable_apart_and_inside_the_space() -> None:
    trials = [tune.sample(METHOD, PROBLEM, "gla", i) for i in range(1, 50)]
    assert trials == [tune.sample(METHOD, PROBLEM, "gla", i) for i in range(1, 50)]
    assert len({str(t) for t in trials}) == len(trials)
    assert tune.sample(METHOD, PROBLEM, "aaren", 1) != trials[0]
    for trial in trials:
        assert 0.01 <= trial["method"]["rate"] <= 1.0
        assert isinstance(trial["method"]["size"], int)
        assert 1 <= trial["method"]["size"] <= 9
        assert 5e-4 <= trial["problem"]["lr"] <= 8e-3
    assert {t["method"]["kind"] for t in trials} == {"a", "b"}
    below = sum(t["method"]["rate"] < 0.1 for t in trials)  # half of a log scale
    assert 22 <= below <= 27


@pytest.mark.parametrize("slug", ["gla", "adamw", "sgd", "softmax"])
def test_few_trials_leave_no_large_gap(slug: str) -> None:
    for count in (3, 5, 8, 20):
        rates = [tune.sample({"rate": METHOD["rate"]}, {}, slug, i)["method"]["rate"] for i in range(1, count + 1)]
        places = sorted(math.log10(rate / 0.01) / 2 for rate in rates)
        assert max(b - a for a, b in itertools.pairwise([0.0, *places, 1.0])) < 2.0 / count
    both = [tune.sample(METHOD, PROBLEM, slug, i) for i in range(1, 41)]
    quarters = {(t["method"]["rate"] < 0.1, t["problem"]["lr"] < 2e-3) for t in both[:10]}
    assert len(quarters) == 4


def test_a_preset_may_have_a_range_of_its_own(tmp_path: Path) -> None:
    rates = METHOD["rate"]
    knob = replace(rates, presets={"slow": [1e-4, 1e-3]})
    assert knob.of("slow").range == [1e-4, 1e-3]
    assert knob.of("other") == knob.of("") == rates
    asked = Request(
        "train_text", ("mkor", "mkor:adamw"), settings={"length": 32, "width": 32}, trials=5, tune=("lr",), budget="2steps"
    )
    plan, *_ = prepare(asked)
    plan.steps, plan.calibration = {e.address: 2 for e in plan.entries}, {e.address: {"step_seconds": 0.1} for e in plan.entries}
    (trials,) = search.rounds(plan, tmp_path, Store(tmp_path))
    drawn = {t.task.address: [] for t in trials}
    for t in trials:
        if t.index:
            drawn[t.task.address].append(t.chosen["method"]["lr"])
    assert max(drawn["mkor:adamw"]) <= 1e-2 < max(drawn["mkor"])


def drawn(asked: Request, root: Path) -> dict[str, list[dict[str, Any]]]:
    """What trials after the first set, by address."""
    plan, *_ = prepare(asked)
    plan.save(root / "plan.json")
    plan = Plan.load(root / "plan.json")
    plan.steps, plan.calibration = {e.address: 2 for e in plan.entries}, {e.address: {"step_seconds": 0.1} for e in plan.entries}
    (trials,) = search.rounds(plan, root, Store(root))
    found: dict[str, list[dict[str, Any]]] = {e.address: [] for e in plan.entries}
    for trial in trials:
        if trial.index:
            found[trial.task.address].append({**trial.chosen["problem"], **trial.chosen["method"]})
    return found


def test_trials_leave_what_a_preset_or_the_user_has_fixed(tmp_path: Path) -> None:
    small = {"length": 32, "width": 32}
    growths = Request("grow_text", ("bert2bert", "bert2bert:fpi"), settings=small, trials=6, budget="10steps")
    found = drawn(growths, tmp_path)
    assert {trial["expansion"] for trial in found["bert2bert"]} == {"aki", "fpi"}
    assert not any("expansion" in trial for trial in found["bert2bert:fpi"])
    named = drawn(replace(growths, tune=("expansion",)), tmp_path)
    assert all(trial.keys() == {"expansion"} for trial in named["bert2bert:fpi"])
    optimisers = Request("train_text", ("mkor", "mkor:adamw", "mkor:f1"), settings=small, trials=3, budget="2steps")
    ranges = drawn(optimisers, tmp_path)
    assert all(trial.keys() == {"f", "lr"} for address in ("mkor", "mkor:adamw") for trial in ranges[address])
    assert all(trial.keys() == {"lr"} for trial in ranges["mkor:f1"])
    given = drawn(replace(optimisers, overrides={"mkor:f1": {"lr": 0.1}}), tmp_path)
    assert all(trial == {} for trial in given["mkor:f1"])


def test_trials_leave_the_settings_that_the_user_has_fixed(tmp_path: Path) -> None:
    asked = Request("recall", ("gla",), settings={"length": 24, "pairs": 2, "vocab": 16}, trials=4, budget="4steps")
    default = prepare(asked)[0].settings["lr"]
    fixed = replace(asked, settings={**asked.settings, "lr": default})
    assert all("lr" in trial for trial in drawn(asked, tmp_path)["gla"])
    assert not any("lr" in trial for trial in drawn(fixed, tmp_path)["gla"])
    assert f"--set lr={default}" in prepare(fixed)[0].command()


def test_the_best_trial_follows_the_direction_and_never_is_a_failure() -> None:
    def trial(name: str, value: float, status: str = "ok") -> dict[str, Any]:
        return {"id": name, "status": status, "metrics": {"m": {"value": value}}}

    trials = [trial("a", 2.0), trial("b", 1.0), trial("c", 3.0), trial("d", 0.0, "diverged"), trial("e", 9.0, "timeout")]
    assert tune.best(trials, "m", "lower") == trials[1]
    assert tune.best(trials, "m", "higher") == trials[2]
    assert tune.best(trials[3:], "m", "lower") is None


def test_tpe_learns_from_the_trials_before_and_repeats() -> None:
    pytest.importorskip("optuna")

    def figure(setting: dict[str, Any]) -> float:
        method = setting["method"]
        return abs(math.log10(method["rate"] / 0.05)) + 0.2 * abs(method["size"] - 4) + (method["kind"] == "a")

    tried: list[tune.Tried] = [({}, 9.0)]
    for index in range(1, 30):
        setting = tune_tpe.propose(METHOD, PROBLEM, "gla", index, tried, "lower")
        assert setting == tune_tpe.propose(METHOD, PROBLEM, "gla", index, tried, "lower")
        assert 0.01 <= setting["method"]["rate"] <= 1.0
        assert setting["method"]["size"] in range(1, 10)
        assert 5e-4 <= setting["problem"]["lr"] <= 8e-3
        tried.append((setting, None if index == 3 else figure(setting)))
    found = [value for _, value in tried[1:] if value is not None]
    random = [figure(tune.sample(METHOD, PROBLEM, "gla", i)) for i in range(1, 200)]
    assert sum(found[-10:]) / 10 < 0.7 * sum(random) / len(random)
    assert tune_tpe.propose(METHOD, PROBLEM, "gla", 0, [], "lower") == {}
    higher = tune_tpe.propose(METHOD, PROBLEM, "gla", 30, tried, "higher")
    assert higher != tune_tpe.propose(METHOD, PROBLEM, "gla", 30, tried, "lower")


def test_trials_vary_the_named_knobs_alone(tmp_path: Path) -> None:
    asked = Request("recall", ("gla",), settings={"length": 24, "pairs": 2, "vocab": 16}, trials=4, tune=("lr",), budget="4steps")
    plan, *_ = prepare(asked)
    assert "--tune lr" in plan.command()
    plan.steps, plan.calibration = {e.address: 4 for e in plan.entries}, {e.address: {"step_seconds": 0.1} for e in plan.entries}
    (trials,) = search.rounds(plan, tmp_path, Store(tmp_path))
    assert len(trials) == 8
    assert {knob for t in trials if t.index for group in t.chosen.values() for knob in group} == {"lr"}
    plan.save(tmp_path / "plan.json")
    read = Plan.load(tmp_path / "plan.json")
    assert prepare(asked, read)[0].tune == ["lr"]
    with pytest.raises(PlanError, match="tuned by random search over lr, asked was random search over all knobs"):
        prepare(replace(asked, tune=()), read)
    with pytest.raises(UnknownNameError, match="knob"):
        prepare(replace(asked, tune=("speed",)))


def test_a_size_that_was_asked_of_a_preset_by_its_method_s_name_is_taken_and_said() -> None:
    asked = Request("loop_regression", ("looped:algoformer",), overrides={"looped": {"depth": 2}}, budget="2steps")
    plan = prepare(asked)[0]
    (entry,) = (entry for entry in plan.entries if entry.address == "looped:algoformer")
    assert entry.arguments["depth"] == 2
    assert "--set looped:algoformer.depth=2" in plan.command()
    other = prepare(Request("recall", ("softmax",), baseline="gla", settings={"length": 24, "pairs": 2, "vocab": 16}))[0]
    assert "--baseline gla" in other.command()
