"""Intervals: closed forms, coverage by enumeration, and agreement of bounds with tests."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from instar.gate import intervals


def test_share_interval_solves_the_mid_p_equation() -> None:
    for k, n in ((1, 50), (7, 120), (60, 100)):
        low, high = intervals.share_interval(k, n)
        for p, wanted in ((float(low), 0.025), (float(high), 0.975)):
            assert stats.binom.sf(k, n, p) + stats.binom.pmf(k, n, p) / 2 == pytest.approx(wanted, abs=1e-9)
    assert intervals.share_interval(0, 40)[0] == 0
    assert intervals.share_interval(40, 40)[1] == 1
    assert float(intervals.share_interval(0, 40)[1]) == pytest.approx(1 - (2 * 0.025) ** (1 / 40))  # P(0)/2 = 2.5 %


@pytest.mark.parametrize("n", [250, 1000, 4000])
@pytest.mark.parametrize("p", [0.02, 0.05, 0.2])
def test_share_covers_by_enumeration(n: int, p: float) -> None:
    k = np.arange(n + 1)
    weight = stats.binom.pmf(k, n, p)
    low, high = intervals.share_interval(k, n)
    assert weight[(low <= p) & (p <= high)].sum() == pytest.approx(0.95, abs=0.02)
    assert weight[low > p].sum() < 0.035  # a wrong "fail"
    assert weight[high < p].sum() < 0.045


@given(st.integers(0, 60), st.integers(0, 60), st.integers(130, 400), st.floats(-0.3, 0.3))
@settings(max_examples=60, deadline=None)
def test_tango_is_the_score_test(up: int, down: int, n: int, delta: float) -> None:
    """z² is the score statistic of the restricted maximum of the trinomial likelihood, found here by a search."""
    if up + down == 0 or abs(delta) < 1e-3:
        return
    z = float(intervals.difference_z(up, down, n, delta))
    q = np.linspace(max(0.0, -delta) + 1e-9, (1 - delta) / 2 - 1e-9, 200_001)
    log = up * np.log(q + delta) + down * np.log(q) + (n - up - down) * np.log(1 - 2 * q - delta)
    best = q[np.argmax(log)]
    expected = (up - down - n * delta) / np.sqrt(n * (2 * best + delta * (1 - delta)))
    assert z == pytest.approx(expected, rel=2e-3, abs=2e-3)


def test_difference_without_downs_is_never_bolder_than_the_share() -> None:
    for up in range(0, 30, 3):
        low, _ = intervals.difference_interval(up, 0, 200)
        assert low <= intervals.share_interval(up, 200)[0] + 1e-12


def test_difference_turns_with_its_signs() -> None:
    low, high = intervals.difference_interval(30, 12, 500)
    back_low, back_high = intervals.difference_interval(12, 30, 500)
    assert (low, high) == pytest.approx((-back_high, -back_low), abs=1e-9)


@pytest.mark.parametrize(("up", "down", "n"), [(0.03, 0.01, 600), (0.06, 0.06, 400), (0.02, 0.0, 300), (0.1, 0.04, 200)])
def test_difference_covers(up: float, down: float, n: int) -> None:
    drawn = np.random.default_rng(3).multinomial(n, [up, down, 1 - up - down], size=20_000)
    low, high = intervals.difference_interval(drawn[:, 0], drawn[:, 1], n)
    covered = ((low <= up - down) & (up - down <= high)).mean()
    assert 0.93 <= covered <= 0.985  # rare one-sided flips are covered more often
    assert (low > up - down).mean() < 0.04


def test_mcnemar_is_the_binomial_test() -> None:
    for up, down in ((3, 9), (0, 5), (10, 10), (0, 0)):
        expected = stats.binomtest(up, up + down, 0.5).pvalue if up + down else 1.0
        assert float(intervals.mcnemar(up, down)) == pytest.approx(expected)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm(p: list[float]) -> None:
    adjusted = intervals.holm(p)
    assert (adjusted >= np.asarray(p) - 1e-15).all()
    assert (adjusted <= np.minimum(1, np.asarray(p) * len(p)) + 1e-15).all()  # never harsher than Bonferroni
    order = np.argsort(p, kind="stable")
    assert (np.diff(adjusted[order]) >= 0).all()
    assert adjusted[order[0]] == min(1, p[order[0]] * len(p))


def test_holm_by_hand() -> None:
    assert intervals.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_effective_items() -> None:
    generator = np.random.default_rng(0)
    single = (generator.random(2000) < 0.1).astype(float)
    assert intervals.effective(single, None) == pytest.approx(2000)
    alone = intervals.effective(single, np.arange(2000))
    assert alone == pytest.approx(2000, rel=0.01)  # blocks of one are no blocks, but for (z/t)²
    copies = np.repeat(single[:200], 10)
    assert intervals.effective(copies, np.repeat(np.arange(200), 10)) == pytest.approx(200, rel=0.05)
    nothing = np.zeros(500)
    assert intervals.effective(nothing, np.repeat(np.arange(50), 10)) < 50
    halves = np.where(single > 0, 0.5, 0.0)
    assert intervals.effective(halves, None) > 2000  # averages over runs tell more than single runs


def test_blocks_cover_what_single_items_do_not() -> None:
    generator = np.random.default_rng(5)
    honest, naive, repeats = 0, 0, 400
    for _ in range(repeats):
        rate = generator.beta(0.5, 4.5, size=80)  # documents differ: mean 0.1
        values = (generator.random((80, 12)) < rate[:, None]).astype(float).ravel()
        blocks = np.repeat(np.arange(80), 12)
        for kind, codes in (("honest", blocks), ("naive", None)):
            n = intervals.effective(values, codes)
            low, high = intervals.share_interval(values.mean() * n, n)
            hit = bool(low <= 0.1 <= high)
            honest, naive = (honest + hit, naive) if kind == "honest" else (honest, naive + hit)
    assert honest / repeats > 0.92
    assert naive / repeats < 0.85


def test_mean_interval_covers_skewed_scores() -> None:
    generator = np.random.default_rng(6)
    inside, repeats = 0, 300
    for _ in range(repeats):
        found = intervals.mean_interval(generator.exponential(1.0, 120) - 1.0, None, draws=600)
        assert found.low is not None
        assert found.high is not None
        inside += found.low <= 0 <= found.high
    assert 0.91 <= inside / repeats <= 0.985


def test_mean_interval_of_many_items_is_cheap_and_the_same() -> None:
    values = np.random.default_rng(1).normal(0.3, 1.0, 200_000)
    found = intervals.mean_interval(values, None)
    half = 1.96 / np.sqrt(len(values))
    assert found.low == pytest.approx(values.mean() - half, abs=half * 0.1)
    assert found.high == pytest.approx(values.mean() + half, abs=half * 0.1)


def test_marks_that_hardly_differ_do_not_look_sure() -> None:
    """Fifty equal differences, or one fall among a hundred, do not tell the spread; the shares of falls do."""
    for values in (np.full(50, 0.25), np.zeros(50), np.eye(100)[0] * 0.3, np.full(50, 0.1)):
        assert intervals.mean_interval(values, None).high is None
        found = intervals.mean_interval(values, None, reach=0.5)
        low, high = intervals.difference_interval(values.sum() / 0.5, 0, len(values))
        assert (found.low, found.high) == pytest.approx((0.5 * low, 0.5 * high))
        assert found.low <= values.mean() <= found.high
    none = intervals.mean_interval(np.zeros(50), None, reach=1.0)
    assert none.high is not None
    assert none.high > 0.05  # fifty items without a fall do not show that fewer than 5 % fall


def test_rare_falls_are_covered() -> None:
    """2 % of items fall by all that a mark can: half of such samples have so few that a bootstrap alone would miss the rest."""
    generator = np.random.default_rng(8)
    inside, repeats = 0, 400
    for _ in range(repeats):
        found = intervals.mean_interval((generator.random(120) < 0.02).astype(float), None, reach=1.0, draws=400)
        assert found.low is not None
        assert found.high is not None
        inside += found.low <= 0.02 <= found.high
    assert inside / repeats >= 0.93
