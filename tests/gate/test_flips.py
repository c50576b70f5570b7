"""Flips: the identities of the measures, and what noise does to them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_predictions import version

from instar.gate.flips import excess, flips, share
from instar.gate.judge import judge
from instar.gate.result import Result

MARKS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=80)


def _figures(result: Result) -> dict[str, float]:
    return {m.id: m.figure.value for m in result.measures}


@given(MARKS)
@settings(max_examples=40, deadline=None)
def test_identities(marks: list[tuple[bool, bool]]) -> None:
    before, after = (np.array([m[i] for m in marks]) for i in (0, 1))
    found = _figures(judge(version("old", before), version("new", after, seed=1)))
    old, new = before.mean(), after.mean()
    assert found["accuracy_change"] == pytest.approx(new - old)
    assert found["accuracy_change"] == pytest.approx(found["pfr"] - found["nfr"])
    assert found["nfr"] <= min(old, 1 - new) + 1e-12
    assert found["nfr_mc"] >= found["nfr"] - 1e-12
    assert found["nfr_mc"] == pytest.approx(found["nfr"] + found["wrong_changed"])
    if old > 0:
        assert found["kept"] == pytest.approx(1 - found["nfr"] / old)  # backward trust compatibility


@given(MARKS)
@settings(max_examples=30, deadline=None)
def test_versions_exchanged(marks: list[tuple[bool, bool]]) -> None:
    before, after = version("a", [m[0] for m in marks]), version("b", [m[1] for m in marks], seed=1)
    there, back = _figures(judge(before, after)), _figures(judge(after, before))
    assert there["nfr"] == pytest.approx(back["pfr"])
    assert there["pfr"] == pytest.approx(back["nfr"])
    assert there["mcnemar"] == pytest.approx(back["mcnemar"])


def test_the_same_version_has_no_flip() -> None:
    one = version("one", np.arange(50) % 3 > 0)
    found = _figures(judge(one, one))
    assert all(found[name] == 0 for name in ("nfr", "pfr", "nfr_mc", "wrong_changed", "changed", "accuracy_change"))
    assert found["mcnemar"] == 1


def test_binary_task_has_no_changed_wrong_answer() -> None:
    """With two labels two wrong answers are the same answer."""
    right = np.random.default_rng(0).random((2, 200)) < 0.7
    labels = ["x" if i % 2 else "y" for i in range(200)]
    other = {"x": "y", "y": "x"}
    from instar.gate.predictions import Predictions

    versions = [
        Predictions(
            f"v{k}", [str(i) for i in range(200)], [a if ok else other[a] for a, ok in zip(labels, right[k], strict=True)], labels
        )
        for k in (0, 1)
    ]
    found = _figures(judge(*versions))
    assert found["nfr_mc"] == found["nfr"]


def test_unrelated_versions_flip_as_chance_says() -> None:
    marks = np.random.default_rng(1).random((2, 40_000)) < np.array([[0.8], [0.7]])
    found = flips(marks[:1].astype(float), marks[1].astype(float))
    assert found.negative.mean() == pytest.approx(0.8 * 0.3, abs=0.01)


def test_noise_is_subtracted_item_by_item() -> None:
    """An unchanged version whose items are right with probability p has an excess of zero, however noisy it is."""
    generator = np.random.default_rng(2)
    p = generator.beta(2, 1, 60_000)
    runs = (generator.random((4, len(p))) < p).astype(float)
    for k in (2, 3):
        found = flips(runs[:k], runs[3])
        assert found.noise is not None
        assert found.negative.mean() == pytest.approx((p * (1 - p)).mean(), abs=0.005)
        tested = excess(found.excess, None, True, 0.95)
        assert tested.figure.low is not None
        assert tested.figure.low <= 0 <= (tested.figure.high or 0)
    wide = excess(flips(runs[:2], runs[3]).excess, None, True, 0.95).figure
    narrow = excess(flips(runs[:3], runs[3]).excess, None, True, 0.95).figure
    assert (narrow.high or 0) - (narrow.low or 0) < (wide.high or 0) - (wide.low or 0)


def test_tolerance() -> None:
    before, after = np.array([[0.5, 0.5, 0.5]]), np.array([0.45, 0.3, 0.9])
    assert flips(before, after).negative.tolist() == [1, 1, 0]
    assert flips(before, after, 0.1).negative.tolist() == [0, 1, 0]
    assert flips(before, after, 0.1).positive.tolist() == [0, 0, 1]


def test_scores_of_zero_and_one_are_the_discrete_case() -> None:
    marks = (np.random.default_rng(3).random((2, 300)) < 0.6).astype(float)
    found = flips(marks[:1], marks[1])
    assert share(found.negative, None, 0.95).value == ((marks[0] == 1) & (marks[1] == 0)).mean()
