"""Intervals cover what they promise, and verdicts follow from intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from instar.bench import statistics
from instar.bench.statistics import Estimate
from instar.items import Items


def simulate(generator: np.random.Generator, seeds: int, items: int, effect: float) -> tuple[list[Items], list[Items]]:
    """Two methods that share item difficulty but differ by seed noise, item taste and an effect."""
    difficulty = generator.normal(2.0, 0.5, items)
    taste = generator.normal(0.0, 0.1, items)
    subject, against = [], []
    for _ in range(seeds):
        noise = generator.normal(0.0, 0.03, 2)
        subject.append(Items(difficulty + taste + effect + noise[0] + generator.normal(0, 0.05, items), np.ones(items)))
        against.append(Items(difficulty + noise[1] + generator.normal(0, 0.05, items), np.ones(items)))
    return subject, against


@pytest.mark.parametrize(("seeds", "items"), [(3, 30), (5, 40), (8, 200)])
def test_intervals_cover_the_truth(seeds: int, items: int) -> None:
    generator = np.random.default_rng(seeds)
    trials = 400
    covered = 0
    for _ in range(trials):
        estimate = statistics.paired(*simulate(generator, seeds, items, 0.1), draws=200)
        assert estimate.interval is not None
        covered += estimate.interval[0] <= 0.1 <= estimate.interval[1]
    assert 0.92 <= covered / trials <= 0.99


def test_pairing_narrows_the_interval() -> None:
    subject, against = simulate(np.random.default_rng(0), 5, 100, 0.1)
    paired = statistics.paired(subject, against)
    alone = statistics.value(subject)
    assert paired.high - paired.low < alone.high - alone.low  # type: ignore[operator]


def test_student_is_scipy_s() -> None:
    values = [0.1, 0.4, 0.2, 0.35]
    estimate = statistics.student(values)
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert estimate.interval == pytest.approx((low, high))


def test_two_seeds_give_no_interval_and_no_verdict() -> None:
    subject, against = simulate(np.random.default_rng(0), 2, 20, 5.0)
    estimate = statistics.paired(subject, against)
    assert estimate.interval is None
    assert statistics.superior(estimate, 0.0) == "undecided"
    assert statistics.detectable(0.1, 0.1, 2, 100) == math.inf


def test_the_same_records_give_the_same_interval() -> None:
    subject, against = simulate(np.random.default_rng(0), 4, 20, 0.0)
    assert statistics.paired(subject, against) == statistics.paired(subject, against)


def test_seeds_with_items_of_their_own_are_judged_by_the_seeds() -> None:
    drawn = [[1.0, 3.0], [2.0, 2.5, 3.0], [4.0, 1.0, 2.0, 2.0]]
    runs = [Items(row, [1.0] * len(row)) for row in drawn]
    found = statistics.value(runs)
    wanted = statistics.student([run.value for run in runs])
    assert (found.value, found.low, found.high) == pytest.approx((wanted.value, wanted.low, wanted.high))


def test_items_that_do_not_pair_are_refused() -> None:
    with pytest.raises(ValueError, match="same items in both"):
        statistics.paired([Items([1.0], [1.0])], [Items([1.0, 2.0], [1.0, 1.0])])
    with pytest.raises(ValueError, match="equally many"):
        statistics.paired([Items([1.0], [1.0])], [])


@given(st.floats(-1, 1), st.floats(0.001, 1), st.floats(0, 0.5))
def test_verdicts_follow_the_interval(centre: float, half: float, margin: float) -> None:
    estimate = Estimate(centre, centre - half, centre + half, 5)
    superior = statistics.superior(estimate, margin)
    assert (superior == "holds") == (centre - half > margin)
    assert (superior == "does not hold here") == (centre + half < margin)
    equivalent = statistics.equivalent(estimate, margin)
    assert (equivalent == "holds") == (-margin <= centre - half and centre + half <= margin)


def test_ratio_and_slope_recover_what_was_planted() -> None:
    generator = np.random.default_rng(0)
    base = generator.lognormal(0.0, 0.1, 7)
    ratio = statistics.ratio(3 * base, base)
    assert ratio.value == pytest.approx(3.0)
    assert ratio.interval == pytest.approx((3.0, 3.0))
    lengths = [256, 1024, 4096]
    slope = statistics.slope(lengths, [[n**1.5 * f for n in lengths] for f in (1.0, 1.1, 0.9)])
    assert slope.value == pytest.approx(1.5)


def test_what_is_called_detectable_is_detected() -> None:
    generator = np.random.default_rng(1)
    effect = statistics.detectable(seed_sd=math.hypot(0.03, 0.03), item_sd=0.1, seeds=5, items=100)
    found = 0
    for _ in range(200):
        estimate = statistics.paired(*simulate(generator, 5, 100, effect), draws=200)
        found += statistics.superior(estimate, 0.0) == "holds"
    assert found / 200 >= 0.7  # planned for 0.8


def test_together() -> None:
    assert statistics.together(["holds", "holds"]) == "holds"
    assert statistics.together(["holds", "does not hold here"]) == "partly"
    assert statistics.together(["holds", "undecided"]) == "undecided"


def test_one_item_and_no_chance_in_the_methods_give_no_interval() -> None:
    """The same difference for every seed is one observation; that nothing differs at all needs no interval."""
    one, other = [Items([2.0], [1.0])] * 3, [Items([3.0], [1.0])] * 3
    assert statistics.paired(one, other) == Estimate(-1.0, None, None, 3, 1)
    assert statistics.paired(one, one) == Estimate(0.0, 0.0, 0.0, 3, 1)


def test_items_without_weight_change_no_interval_into_none() -> None:
    """As of a series that has nothing to forecast: one in nine draws of these three holds nothing at all."""
    runs = [[Items([luck * w for w in weights], weights) for luck in (1.0, 1.1, 1.3)] for weights in ([2.0, 0, 0], [2.0, 1, 0])]
    for run in runs:
        found = statistics.value(run)
        assert found.interval is not None
        assert found.interval[0] < found.value < found.interval[1]
