"""The decision rule."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_predictions import flipped, version

from instar.errors import PlanError, UnknownNameError
from instar.gate import policy
from instar.gate.judge import judge
from instar.gate.policy import Policy, SliceLimits
from instar.gate.predictions import Predictions
from instar.gate.result import Result

N = 1000
RIGHT = np.arange(N) % 10 > 0  # 90 % right


def _judge(places: range, **given: object) -> Result:
    return judge(version("old", RIGHT), version("new", flipped(RIGHT, places)), **given)  # type: ignore[arg-type]


def test_pass_fail_undecided() -> None:
    right = np.flatnonzero(RIGHT)
    new = lambda n: version("new", flipped(RIGHT, right[:n]))  # noqa: E731
    old = version("old", RIGHT)
    assert judge(old, new(5)).decision == "pass"
    assert judge(old, new(60)).decision == "fail"
    between = judge(old, new(24))
    assert between.decision == "undecided"
    assert between.tests[0].needed is not None
    assert between.tests[0].needed > N
    assert "would decide" in between.reasons[0]
    assert [judge(old, new(n)).exit_code for n in (5, 60, 24)] == [0, 1, 2]


def test_bounds_decide_at_the_budget() -> None:
    right = np.flatnonzero(RIGHT)
    for n in range(0, 60, 3):
        result = judge(version("old", RIGHT), version("new", flipped(RIGHT, right[:n])))
        test = result.tests[0]
        assert test.figure.low is not None
        assert test.figure.high is not None
        expected = "fail" if test.figure.low > 0.02 else "pass" if test.figure.high < 0.02 else "undecided"
        assert result.decision == expected
        assert (test.p is not None and test.p <= 0.025) == (test.decision == "fail")


def test_a_noisy_version_is_not_blamed() -> None:
    """Another tenth of the right items is wrong in every run: without a floor that fails, with it it does not."""
    generator = np.random.default_rng(0)
    runs = [np.where(generator.random(N) < 0.2, generator.random(N) < 0.5, RIGHT) for _ in range(3)]
    old, again, new = (version(name, marks) for name, marks in zip(("old", "again", "new"), runs, strict=True))
    assert judge(old, new).decision == "fail"
    with_floor = judge(old, new, again=[again])
    assert with_floor.decision != "fail"
    assert with_floor.floor is not None
    assert with_floor.floor.value == pytest.approx(0.09, abs=0.02)
    assert not any("repeated" in caution for caution in with_floor.cautions)
    assert any("noise floor is taken as 0" in caution for caution in judge(old, new).cautions)


def test_a_planted_fault_is_seen_through_the_noise() -> None:
    generator = np.random.default_rng(1)
    N = 6000
    right = np.arange(N) % 10 > 0
    noisy = lambda: np.where(generator.random(N) < 0.2, generator.random(N) < 0.5, right)  # noqa: E731
    broken = noisy() & ~(np.arange(N) % 12 == 5)
    result = judge(version("old", noisy()), version("new", broken), again=[version("again", noisy())])
    assert result.decision == "fail"
    assert result.tests[0].figure.value == pytest.approx(0.9 / 12, abs=0.02)


def test_budget_of_zero() -> None:
    at_zero = Policy(max_nfr=0.0)
    assert _judge(range(1, 2), policy=at_zero).decision == "fail"  # one flip proves that there are flips
    none = _judge(range(0), policy=at_zero)
    assert none.decision == "undecided"
    assert "max_flips = 0" in none.reasons[0]
    assert _judge(range(0), policy=Policy(max_nfr=None, max_flips=0)).decision == "pass"


def test_counted_flips() -> None:
    counted = Policy(max_nfr=None, max_flips=2)
    assert _judge(range(1, 3), policy=counted).decision == "pass"
    failed = _judge(range(1, 4), policy=counted)
    assert failed.decision == "fail"
    assert "3 items of 1000 broke, 2 allowed" in failed.tests[0].words
    # What noise alone breaks does not count: it was not right in every run of the old version.
    old, again = version("old", RIGHT), version("again", flipped(RIGHT, [1, 2, 3]))
    assert (
        judge(old, version("new", flipped(RIGHT, [1, 2, 3])), again=[again], policy=Policy(max_nfr=None, max_flips=0)).decision
        == "pass"
    )


def test_accuracy_drop() -> None:
    assert _judge(range(1, 100), policy=Policy(max_nfr=None, max_accuracy_drop=0.02)).decision == "fail"
    assert _judge(range(0, 5), policy=Policy(max_nfr=None, max_accuracy_drop=0.05)).decision == "pass"
    # Flips both ways cancel in the accuracy and not in NFR.
    both = [*np.flatnonzero(RIGHT)[:60], *np.flatnonzero(~RIGHT)[:60]]
    result = judge(
        version("old", RIGHT), version("new", flipped(RIGHT, both)), policy=Policy(max_nfr=0.02, max_accuracy_drop=0.05)
    )
    assert [(t.kind, t.decision) for t in result.tests] == [("max_nfr", "fail"), ("max_accuracy_drop", "pass")]


def test_missing_answers_never_pass() -> None:
    right = np.flatnonzero(RIGHT)
    silent = judge(version("old", RIGHT), version("new", RIGHT, silent=[3, 4], errors={"item-3": "timed out"}))
    assert silent.decision == "undecided"
    assert silent.tests[0].decision == "undecided"  # the budget itself, not only the whole
    assert silent.missing == 2
    assert silent.missing_ids["item-3"] == "new: timed out"
    assert silent.missing_ids["item-4"] == "new: no answer"
    # What fails even if all missing items were kept has failed; what fails only without them has not.
    worse = version("new", flipped(RIGHT, right[:100]), silent=[right[-1]])
    assert judge(version("old", RIGHT), worse).decision == "fail"
    half = version("new", flipped(RIGHT, right[:16]), silent=range(500, 1000))
    assert judge(version("old", RIGHT), half).decision == "undecided"
    counted = judge(version("old", RIGHT), version("new", RIGHT, silent=[1]), policy=Policy(max_nfr=None, max_flips=0))
    assert counted.decision == "undecided"


def test_slices_have_budgets_of_their_own() -> None:
    columns = {"domain": ["bank" if i < 300 else "travel" for i in range(N)], "must": [i < 20 for i in range(N)]}
    right = np.flatnonzero(RIGHT)
    new = version("new", flipped(RIGHT, [i for i in right if i < 300][:40]))
    old = version("old", RIGHT, columns=columns)
    limits = (SliceLimits(max_nfr=0.03, column="domain"), SliceLimits(max_flips=0, column="must", value="true"))
    result = judge(old, new, policy=Policy(max_nfr=0.2, slices=limits))
    found = {(t.scope, t.kind): t.decision for t in result.tests}
    assert found == {
        ("all items", "max_nfr"): "pass",
        ("domain = bank", "max_nfr"): "fail",
        ("domain = travel", "max_nfr"): "pass",
        ("must = true", "max_flips"): "fail",
    }
    assert result.decision == "fail"


def test_many_slices_do_not_fail_by_chance() -> None:
    """60 slices, each on its budget: one by one some would be called above it, adjusted none is."""
    generator = np.random.default_rng(7)
    n, parts, false, naive = 12_000, 60, 0, 0
    for _ in range(20):
        right = np.ones(n, dtype=bool)
        new = flipped(right, np.flatnonzero(generator.random(n) < 0.05))
        columns = {"part": [i % parts for i in range(n)]}
        columns["part"] = [f"p{v}" for v in columns["part"]]  # type: ignore[misc]
        limits = (SliceLimits(max_nfr=0.05, column="part"),)
        result = judge(version("old", right, columns=columns), version("new", new), policy=Policy(max_nfr=0.5, slices=limits))
        false += any(t.decision == "fail" for t in result.tests)
        naive += any(t.figure.low is not None and t.figure.low > 0.05 for t in result.tests)
    assert naive >= 8
    assert false <= 2


def test_slices_that_are_not_there() -> None:
    old, new = version("old", RIGHT, columns={"domain": ["a"] * N}), version("new", RIGHT)
    with pytest.raises(PlanError, match="'dmain'; the items have the columns domain"):
        judge(old, new, policy=Policy(slices=(SliceLimits(max_nfr=0.1, column="dmain"),)))
    with pytest.raises(PlanError, match=r"domain = b, but no item is there.*empty slice"):
        judge(old, new, policy=Policy(slices=(SliceLimits(max_nfr=0.1, column="domain", value="b"),)))


def test_reading_a_policy(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text('max_nfr = 0.01\nlevel = 0.9\n[[slices]]\ncolumn = "domain"\nvalue = 3\nmax_flips = 0\n')
    found = policy.read(path)
    assert (found.max_nfr, found.level, found.slices) == (0.01, 0.9, (SliceLimits(None, None, 0, "domain", "3"),))
    assert policy.read(path, max_nfr=None, level=0.99).level == 0.99
    assert policy.read(path, max_nfr=0.5).max_nfr == 0.5


@pytest.mark.parametrize(
    ("text", "error", "match"),
    [
        ("max_nfr = 2", PlanError, "share from 0"),
        ("max_nfr = '2 %'", PlanError, "expects a number"),
        ("max_nfr = true", PlanError, "expects a number"),
        ("max_flips = 0.5", PlanError, "whole number"),
        ("level = 95", PlanError, "between 0.5 and 1"),
        ("max_nrf = 0.1", UnknownNameError, "max_nfr"),
        ("[[slices]]\nmax_nfr = 0.1", PlanError, "names a column"),
        ("[[slices]]\ncolumn = 'a'", PlanError, "sets no limit"),
        ("slices = 3", PlanError, r"\[\[slices\]\]"),
        ("max_nfr = ", PlanError, "no TOML"),
        ("tolerance = -1", PlanError, "0 or more"),
        ("tolerance = inf", PlanError, "0 or more"),
    ],
)
def test_policies_that_make_no_sense(tmp_path: Path, text: str, error: type[Exception], match: str) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(text)
    with pytest.raises(error, match=match):
        policy.read(path)
    with pytest.raises(PlanError, match="cannot be read"):
        policy.read(tmp_path / "none.toml")


def test_counting_takes_the_place_of_the_default_budget(tmp_path: Path) -> None:
    """A short list that must work can pass: thirty items can never show an upper bound below 2 %."""
    path = tmp_path / "policy.toml"
    path.write_text("max_flips = 0")
    assert policy.read(path).max_nfr is None
    assert Policy().max_nfr == Policy(max_accuracy_drop=0.1).max_nfr == 0.02
    few = version("few", np.ones(30, dtype=bool))
    assert judge(few, few, policy=policy.read(path)).decision == "pass"
    assert judge(few, few).decision == "undecided"
    assert policy.read(path, max_nfr=0.1).max_nfr == 0.1


def test_p_and_bounds_say_the_same_of_scores() -> None:
    generator = np.random.default_rng(4)
    ids = [str(i) for i in range(150)]
    for shift in (0.0, 0.02, 0.04, 0.06, 0.08):
        before = generator.random(150)
        after = before - shift - generator.exponential(0.03, 150)
        old, new = (Predictions(n, ids, ["t"] * 150, scores=s) for n, s in (("old", before), ("new", after)))
        test = judge(old, new, policy=Policy(max_nfr=0.99, max_accuracy_drop=0.075)).tests[1]
        assert test.p is not None
        assert (test.p <= 0.025) == (test.decision == "fail")
        assert (test.needed is not None) == (test.decision == "undecided")


def test_two_equal_marks_do_not_pass() -> None:
    scores = np.array([0.5, 0.7])
    old, new = (Predictions(n, ["a", "b"], ["t"] * 2, scores=scores) for n in ("old", "new"))
    result = judge(old, new, policy=Policy(max_nfr=None, max_flips=0, max_accuracy_drop=0.01))
    assert [t.decision for t in result.tests] == ["undecided", "pass"]
    alike = replace(old, scores=np.array([0.5, 0.5]))
    assert "do not tell how marks vary" in " ".join(judge(alike, alike, policy=Policy(max_accuracy_drop=0.01)).reasons)


def test_missing_items_dilute_a_slice_before_holm() -> None:
    """A slice that fails alone, and after Holm, but not after Holm with its missing items kept, has not failed."""
    n, parts = 4000, 40
    right = np.ones(n, dtype=bool)
    columns = {"part": [f"p{i % parts}" for i in range(n)]}
    limits = (SliceLimits(max_nfr=0.05, column="part"),)
    chosen = Policy(max_nfr=0.9, slices=limits)
    inside = np.flatnonzero(np.arange(n) % parts == 3)
    old = version("old", right, columns=columns)
    least = next(k for k in range(5, 40) if judge(old, version("n", flipped(right, inside[:k])), policy=chosen).exit_code == 1)
    for flips, decision in ((least - 1, "undecided"), (least, "fail")):  # of 60 answered items of 100
        new = version("new", flipped(right, inside[:flips]), silent=inside[-40:])
        assert judge(old, new, policy=chosen).decision == decision
    few = judge(old, version("new", flipped(right, inside[: least - 1])), policy=chosen)
    test = next(t for t in few.tests if t.scope == "part = p3")
    assert test.figure.low is not None
    assert test.figure.low > 0.05
    assert "alone it would fail" in test.words
    assert not any("No realistic number" in reason for reason in few.reasons)
