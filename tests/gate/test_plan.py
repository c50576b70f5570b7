"""Sample sizes: the promised power, by simulation of the very decision."""

from __future__ import annotations

import numpy as np
import pytest

from instar.errors import PlanError
from instar.gate import intervals
from instar.gate.plan import fail_power, needed, pass_power, plan


@pytest.mark.parametrize("floor", [0.0, 0.01, 0.05])
def test_power_is_what_the_decision_does(floor: float) -> None:
    found = plan(max_nfr=0.02, detect=0.02, power=0.9, floor=floor)
    generator = np.random.default_rng(2)
    up = 0.04 + floor
    drawn = generator.multinomial(found.items, [up, floor, 1 - up - floor], size=20_000)
    if floor:
        low, _ = intervals.difference_interval(drawn[:, 0], drawn[:, 1], found.items)
    else:
        low, _ = intervals.share_interval(drawn[:, 0], found.items)
    assert (low > 0.02).mean() == pytest.approx(found.power, abs=0.01)
    assert found.power >= 0.9


@pytest.mark.parametrize("floor", [0.0, 0.03])
def test_passing(floor: float) -> None:
    found = plan(max_nfr=0.02, detect=0.02, floor=floor)
    assert found.to_pass is not None
    drawn = np.random.default_rng(4).multinomial(found.to_pass, [floor, floor, 1 - 2 * floor], size=20_000)
    if floor:
        _, high = intervals.difference_interval(drawn[:, 0], drawn[:, 1], found.to_pass)
    else:
        _, high = intervals.share_interval(drawn[:, 0], found.to_pass)
    assert (high < 0.02).mean() >= 0.89


def test_more_items_never_find_less_than_asked() -> None:
    found = plan(max_nfr=0.02, detect=0.02)
    assert all(fail_power(n, 0.04, 0.0, 0.02) >= 0.9 for n in range(found.items, found.items * 2, 7))
    assert fail_power(found.items // 2, 0.04, 0.0, 0.02) < 0.9


def test_power_has_its_limits() -> None:
    assert fail_power(50, 1.0, 0.0, 0.02) == pytest.approx(1.0)
    assert pass_power(50, 1.0, 0.0, 0.02) == pytest.approx(0.0)
    assert fail_power(400, 0.02, 0.0, 0.02) < 0.035  # at the budget it is the false alarm


def test_what_cannot_be_planned() -> None:
    with pytest.raises(PlanError, match="detect > 0"):
        plan(max_nfr=0.02, detect=0.0)
    with pytest.raises(PlanError, match="between 0 and 1"):
        plan(max_nfr=0.02, detect=0.02, power=1.0)
    with pytest.raises(PlanError, match="would be needed"):
        plan(max_nfr=0.5, detect=1e-5)
    assert plan(max_nfr=0.0, detect=0.02).to_pass is None


def test_needed_is_near_the_exact_number() -> None:
    for floor in (0.0, 0.02):
        exact = plan(max_nfr=0.02, detect=0.02, floor=floor).items
        about = needed(0.04 + floor, floor, 0.02, paired=floor > 0)
        assert about == pytest.approx(exact, rel=0.2)
    assert needed(0.02, 0.0, 0.02, paired=False) is None
    assert needed(0.0200001, 0.0, 0.02, paired=False) is None
