"""Verdicts are computed from records: planted effects give the verdict that they should, and nothing is said without records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from instar import catalogue
from instar.bench import claims, plan
from instar.bench.budget import Budget
from instar.bench.record import Store
from instar.bench.reproduce import reproduce
from instar.cards import Claim
from instar.errors import PlanError, RecordError, UnknownNameError
from instar.items import Floor
from instar.report import ledger

CARD = catalogue.method("gla")
CLAIM = Claim(
    id="planted",
    text="t",
    source="s",
    kind="compare",
    measure="text.bits_per_byte",
    against="softmax",
    direction="lower",
    margin=0.02,
)
TIMED = replace(CLAIM, kind="ratio", measure="text.decode_seconds@16384", against="self@256", margin=1 / 1.1)


PROBLEM = {"slug": "text", "settings": {}}


def run(address: str, seed: int, metrics: dict[str, list[float]], costs: dict[str, float] | None = None) -> dict[str, Any]:
    return {
        "schema": 1,
        "id": f"{address.replace(':', '-')}-{seed}",
        "kind": "run",
        "status": "ok",
        "reason": None,
        "spec": {"problem": PROBLEM, "seed": seed},
        "address": address,
        "metrics": {k: {"value": float(np.mean(v)), "totals": v, "weights": [1.0] * len(v)} for k, v in metrics.items()},
        "costs": costs or {},
        "resources": {"cpu_seconds": 30.0},
    }


def timing(times: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    table = {a: {m: {"rounds": r} for m, r in metrics.items()} for a, metrics in times.items()}
    return {
        "schema": 1,
        "id": "timing",
        "kind": "timing",
        "status": "ok",
        "spec": {"problem": PROBLEM},
        "address": "",
        "times": table,
    }


def judged(root: Path, claim: Claim, *records: dict[str, Any]) -> claims.Judgement:
    store = Store(root / claims.folder_name(claim))
    for record in records:
        store.put(record)
    return claims.judge(CARD, claim, root)


def pairs(effect: float, seeds: int = 5, at: str = "T") -> list[dict[str, Any]]:
    generator = np.random.default_rng(0)
    base = generator.normal(3.0, 0.3, 40)
    found = []
    for seed in range(seeds):
        shift = generator.normal(0, 0.005)
        for address, change in (("softmax", 0.0), ("gla", -effect + shift)):
            found.append(run(address, seed, {f"bits_per_byte@{at}": (base + change + generator.normal(0, 0.01, 40)).tolist()}))
    return found


@pytest.mark.parametrize(
    ("effect", "margin", "verdict"),
    [
        (0.1, 0.02, "holds"),
        (0.0, 0.02, "does not hold here"),
        (0.02, 0.02, "undecided"),
        (0.0, -0.02, "holds"),
        (-0.1, -0.02, "does not hold here"),
    ],
)
def test_superiority(tmp_path: Path, effect: float, margin: float, verdict: str) -> None:
    found = judged(tmp_path, replace(CLAIM, margin=margin), *pairs(effect))
    assert found.verdict == verdict
    assert found.seeds == 5
    assert found.value == pytest.approx(effect, abs=0.015)
    assert found.core_minutes == 5.0


@pytest.mark.parametrize(("effect", "verdict"), [(0.0, "holds"), (0.1, "does not hold here"), (0.05, "undecided")])
def test_parity(tmp_path: Path, effect: float, verdict: str) -> None:
    assert judged(tmp_path, replace(CLAIM, kind="parity", margin=0.05), *pairs(effect)).verdict == verdict


@pytest.mark.parametrize(("floor", "verdict"), [(3.0, "undecided"), (3.04, "undecided"), (3.2, "holds")])
def test_parity_at_the_floor_is_undecided_and_says_why(tmp_path: Path, floor: float, verdict: str) -> None:
    """Bits are near 3 and lower is better: only of the last floor are both clear."""
    claim = replace(CLAIM, kind="parity", margin=0.05)
    records = [{**one, "spec": {**one["spec"], "data": "d"}} for one in pairs(0.0)]
    mean = float(np.mean([one["metrics"]["bits_per_byte@T"]["value"] for one in records]))
    store = Store(tmp_path / claims.folder_name(claim))
    store.put_floors("d", {"bits_per_byte@T": Floor(mean - 3.0 + floor, "counting bytes")})
    found = judged(tmp_path, claim, *records)
    assert found.verdict == verdict
    assert (found.reason is not None) == (verdict == "undecided")
    assert found.reason is None or found.reason.startswith("both at the floor of counting bytes: ")
    assert judged(tmp_path, replace(claim, kind="compare", margin=-0.05)).verdict == "holds"  # of which a floor says nothing
    store.put_floors("other data", {"bits_per_byte@T": Floor(mean, "counting bytes")})
    assert judged(tmp_path, claim).verdict == "holds"
    store.floors.write_text('{"data": "d"', "utf-8")
    with pytest.raises(RecordError, match="floors"):
        judged(tmp_path, claim)


def test_two_seeds_give_no_verdict(tmp_path: Path) -> None:
    found = judged(tmp_path, CLAIM, *pairs(1.0, seeds=2))
    assert (found.verdict, found.interval, found.seeds) == ("undecided", None, 2)


def test_against_itself_at_another_condition(tmp_path: Path) -> None:
    base = np.linspace(2, 4, 30)
    runs = [run("gla", s, {"bits_per_byte@T": base.tolist(), "bits_per_byte@4T": (base - 0.01 * s).tolist()}) for s in range(5)]
    claim = replace(CLAIM, measure="text.bits_per_byte@4T", against="self@T", margin=-0.02)
    assert judged(tmp_path, claim, *runs).verdict == "holds"


@pytest.mark.parametrize(("growth", "verdict"), [(1.0, "holds"), (2.0, "does not hold here")])
def test_ratio_of_times(tmp_path: Path, growth: float, verdict: str) -> None:
    rounds = np.random.default_rng(0).lognormal(-7, 0.01, 7)
    times = {"gla": {"decode_seconds@256": rounds.tolist(), "decode_seconds@16384": (growth * rounds).tolist()}}
    found = judged(tmp_path, TIMED, timing(times))
    assert found.verdict == verdict
    assert found.value == pytest.approx(1 / growth)


@pytest.mark.parametrize(("power", "verdict"), [(1.0, "holds"), (2.0, "does not hold here")])
def test_slope(tmp_path: Path, power: float, verdict: str) -> None:
    noise = np.random.default_rng(0).lognormal(0, 0.01, (3, 7))
    lengths = (256, 1024, 4096)
    times = {"gla": {f"prefill_seconds@{n}": (n**power * noise[i]).tolist() for i, n in enumerate(lengths)}}
    claim = replace(
        CLAIM, kind="slope", measure="text.prefill_seconds@256", against=1.2, over=[str(n) for n in lengths], margin=0.0
    )
    assert judged(tmp_path, claim, timing(times)).verdict == verdict


def test_exact_threshold_and_several_conditions(tmp_path: Path) -> None:
    costs = {"state_bytes@256": 8.0, "state_bytes@16384": 8.0, "state_bytes@4096": 9.0}
    exact = replace(CLAIM, kind="exact", measure="text.state_bytes@16384", against="self@256")
    assert judged(tmp_path, exact, run("gla", 0, {}, costs)).verdict == "holds"
    assert judged(tmp_path, replace(exact, measure="text.state_bytes@4096")).verdict == "does not hold here"
    assert judged(tmp_path, replace(exact, over=["16384", "4096"])).verdict == "partly"
    threshold = replace(exact, kind="threshold", against=10.0, margin=0.0)
    assert judged(tmp_path, threshold).verdict == "holds"
    assert judged(tmp_path, replace(threshold, against=8.0, margin=1.0)).verdict == "does not hold here"


def test_a_number_of_the_same_items_leaves_chance_to_the_seeds(tmp_path: Path) -> None:
    claim = replace(CLAIM, kind="threshold", against=3.1, margin=0.0)
    items = np.random.default_rng(0).normal(0.0, 1.0, 40)
    items -= items.mean()
    runs = [run("gla", s, {"bits_per_byte@T": (3.0 + shift + items).tolist()}) for s, shift in enumerate((-0.01, 0.0, 0.01))]
    assert judged(tmp_path, claim, *runs).verdict == "undecided"
    found = judged(tmp_path, replace(claim, same_items=True))
    assert (found.verdict, found.seeds) == ("holds", 3)
    assert found.interval == pytest.approx((3.0 - 4.3027 * 0.01 / 3**0.5, 3.0 + 4.3027 * 0.01 / 3**0.5), abs=1e-5)
    assert judged(tmp_path, replace(claim, same_items=True, against=3.0)).verdict == "undecided"


def test_exact_claims_of_scores_hold_for_every_seed(tmp_path: Path) -> None:
    exact = replace(CLAIM, kind="exact", margin=0.0)
    one, other = {"bits_per_byte@T": [1.0, 3.0]}, {"bits_per_byte@T": [2.0, 2.5]}
    for seed in range(2):
        assert judged(tmp_path, exact, run("gla", seed, one), run("softmax", seed, one)).verdict == "holds"
    assert judged(tmp_path, replace(exact, against=2.0)).verdict == "holds"
    assert judged(tmp_path, exact, run("gla", 2, one), run("softmax", 2, other)).verdict == "does not hold here"
    assert judged(tmp_path, replace(exact, against=2.5)).verdict == "does not hold here"


def test_nothing_is_said_without_records(tmp_path: Path) -> None:
    assert claims.judge(CARD, CLAIM, tmp_path).verdict == "not run"
    failed: Callable[[int], dict[str, Any]] = lambda s: {**run("gla", s, {}), "status": "diverged", "reason": "loss is nan"}  # noqa: E731
    found = judged(tmp_path, CLAIM, *(r for r in pairs(0.1) if r["address"] == "softmax"), *(failed(s) for s in range(5)))
    assert found.verdict == "undecided"
    assert "diverged" in str(found.reason)


def ruined(records: list[dict[str, Any]], address: str, *statuses: str) -> list[dict[str, Any]]:
    """The same, where the first seeds of a method ended in these ways."""
    ends = dict(enumerate(statuses))
    return [
        {**r, "status": ends[r["spec"]["seed"]], "metrics": {}} if r["address"] == address and r["spec"]["seed"] in ends else r
        for r in records
    ]


@pytest.mark.parametrize("kind", ["compare", "parity"])
def test_a_method_that_diverges_on_some_seeds_is_undecided_at_best(kind: Any, tmp_path: Path) -> None:
    claim = replace(CLAIM, kind=kind, margin=0.02 if kind == "compare" else 0.05)
    effect = 0.1 if kind == "compare" else 0.0
    assert judged(tmp_path / "whole", claim, *pairs(effect)).verdict == "holds"
    found = judged(tmp_path / "both", claim, *ruined(pairs(effect), "gla", "diverged", "diverged"))
    assert (found.verdict, found.seeds, found.reason) == ("undecided", 3, "gla: 2 of 5 seeds diverged")
    assert "**undecided** (gla: 2 of 5 seeds diverged)" in ledger.markdown([asdict(found)])
    found = judged(tmp_path / "others", claim, *ruined(pairs(effect), "gla", "timeout", "error"))
    assert (found.verdict, found.reason) == ("undecided", "gla: 1 of 5 seeds failed, 1 of 5 seeds ran out of time")
    worse = judged(tmp_path / "worse", claim, *ruined(pairs(-0.1), "gla", "diverged"))
    assert (worse.verdict, worse.reason) == ("does not hold here", "gla: 1 of 5 seeds diverged")


def test_a_baseline_that_diverges_is_said_and_takes_nothing_from_the_method(tmp_path: Path) -> None:
    found = judged(tmp_path, CLAIM, *ruined(pairs(0.1), "softmax", "diverged", "diverged"))
    assert (found.verdict, found.seeds, found.reason) == ("holds", 3, "softmax: 2 of 5 seeds diverged")


def test_a_seed_that_was_run_again_is_no_failure(tmp_path: Path) -> None:
    before = {**ruined(pairs(0.1), "gla", "killed")[1], "id": "before"}
    assert before["status"] == "killed"
    found = judged(tmp_path, CLAIM, *pairs(0.1), before)
    assert (found.verdict, found.reason) == ("holds", None)


def test_claims_are_selected_by_method_preset_and_name() -> None:
    every = claims.select()
    assert {card.slug for card, _ in every} >= {"gla", "aaren"}
    assert all("no_gate" in (str(c.against) + str(c.subject)) for _, c in claims.select(["gla:no_gate"]))
    with pytest.raises(UnknownNameError, match="gate_beats_none"):
        claims.select(["gla"], "gate_beats_nothing")


@pytest.mark.parametrize("direction", ["lower", "higher"])
@pytest.mark.parametrize("value", [0.3, 0.45, 0.55, 0.7])
def test_what_the_ledger_says_is_needed_is_what_decides(direction: Any, value: float) -> None:
    claim = replace(CLAIM, kind="threshold", against=0.5, direction=direction, margin=0.1)
    records = [run("gla", seed, {"bits_per_byte@T": [value + 0.01 * seed] * 4}) for seed in range(3)]
    found = claims.judge(CARD, claim, Path("nowhere"), records=records)
    sign, bound = ledger.needed(asdict(found)).split()
    assert found.interval is not None
    beyond = [end > float(bound) if sign == ">" else end < float(bound) for end in found.interval]
    assert found.verdict == ("holds" if all(beyond) else "undecided" if any(beyond) else "does not hold here")


def test_a_rate_is_higher_where_seconds_are_fewer() -> None:
    name = "train_tokens_per_second"
    claim = replace(CLAIM, kind="ratio", measure=f"text.{name}", direction="higher", margin=1.5)
    seconds = timing({"gla": {name: [1e-5, 1.1e-5, 1e-5]}, "softmax": {name: [2e-5, 2.2e-5, 2e-5]}})
    found = claims.judge(CARD, claim, Path("nowhere"), records=[seconds])
    assert (found.verdict, found.value) == ("holds", pytest.approx(2))


def test_no_seeds_are_not_the_claim_s_own_number() -> None:
    with pytest.raises(PlanError, match="received 0"):
        claims.works(claims.select(["gla"]), seeds=0)


def test_a_quick_look_takes_a_tenth_of_every_budget() -> None:
    every = claims.select()
    full, quick = ({w.folder.removeprefix("quick-"): w for w in claims.works(every, quick=quick)} for quick in (False, True))
    units = set()
    for name, work in quick.items():
        before, after = Budget.parse(full[name].budget), Budget.parse(work.budget)
        if before.amount > 1:  # costs are of one step
            units.add(before.kind)
            assert (after.kind, after.amount) == (before.kind, pytest.approx(before.amount / 10, abs=1))
    assert units == {"seconds", "steps"}


def test_equal_conditions_share_their_runs() -> None:
    works = claims.works(claims.select(["gla", "aaren"]))
    assert len({w.folder for w in works}) == len(works)
    assert sum(w.problem == "text" and w.train and w.budget == "800steps" for w in works) == 1
    for work in claims.works(claims.select(["gla"]), quick=True):
        assert work.folder.startswith("quick-")
        assert work.seeds <= claims.QUICK_SEEDS


@pytest.mark.parametrize("name", ["no_worse", "text_no_worse"])
def test_what_a_switch_costs_is_asked_at_equal_settings(name: str) -> None:
    (work,) = claims.works(claims.select(["mkor_h"], name))
    assert (work.trials, work.tune) == (1, ())
    one, other = (catalogue.parse(address) for address in work.methods)
    assert {key: value for key, value in one.arguments.items() if key != "switch_at"} == other.arguments


def test_conditions_of_the_plan_are_no_settings_of_the_problem() -> None:
    (tuned,) = claims.works(claims.select(["muon"], "text_equal_steps"))
    assert (tuned.trials, tuned.tune, tuned.settings) == (6, ("lr",), {"data": "tinyshakespeare"})
    (other,) = claims.works(claims.select(["transformer_programs"], "trec_above_words"))
    assert (other.baseline, other.settings) == ("unigram:rare", {"task": "trec", "batch": 128})
    every = claims.works(claims.select())
    for work in every:  # what is left must be a setting
        plan.build_problem(work.problem, {**work.settings})


def test_a_claim_of_a_real_method_is_run_and_judged(tmp_path: Path) -> None:
    (found,), _ = reproduce(["aaren"], claim="constant_state", results=tmp_path)
    assert found.verdict == "holds"
    (again,), (comparison,) = reproduce(["aaren"], claim="constant_state", results=tmp_path)
    assert comparison.ran == 0
    assert again == found
