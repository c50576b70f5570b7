"""The rule that chooses: the simplest of those that are level, and a map only where nothing without one does as well."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from instar.upgrade.advice import advise
from instar.upgrade.choosing import Choosing
from instar.upgrade.result import Arm, Figure, Point

Q, STAGES = 600, 5


def arm(name: str, kind: str, means: list[float], hours_before: float = 0.0) -> tuple[Arm, np.ndarray]:
    """An arm whose queries are found with these probabilities at each stage, all arms by the same draw."""
    draw = np.random.default_rng(0).random(Q)[:, None]
    marks = (draw < np.array(means)).astype(float)
    curve = [
        Point(f, Figure(m), Figure(m), Figure(0.0), max(100 * f, hours_before), 0.0)
        for f, m in zip(np.linspace(0, 1, len(means)), marks.mean(0), strict=True)
    ]
    return Arm(name, name, kind, "", curve), marks  # type: ignore[arg-type]


def choosing(*made: tuple[Arm, np.ndarray]) -> Choosing:
    return Choosing([a for a, _ in made], {a.id: m for a, m in made}, None, 0.95)


KEEP = arm("keep", "as it is", [0.5])
BOTH = arm("two_encoders", "two encoders", [0.5, 0.6, 0.7, 0.8, 0.9])


def test_no_map_is_taken_where_it_does_as_well() -> None:
    no_map = arm("no_map", "switch", [0.7, 0.75, 0.8, 0.85, 0.9])
    ridge = arm("ridge", "map", [0.702, 0.752, 0.8, 0.85, 0.9])
    found = choosing(KEEP, no_map, BOTH, ridge)
    assert [found.at(s).arm.id for s in range(STAGES)] == ["no_map"] * STAGES
    assert found.during().arm.id == "no_map"


def test_a_map_is_taken_where_it_is_better_beyond_chance() -> None:
    no_map = arm("no_map", "switch", [0.1, 0.3, 0.5, 0.7, 0.9])
    ridge = arm("ridge", "map", [0.7, 0.75, 0.8, 0.85, 0.9])
    found = choosing(KEEP, no_map, BOTH, ridge)
    assert found.at(0).arm.id == "ridge"
    assert found.at(0).sure
    assert found.at(STAGES - 1).arm.id != "ridge", "when all is done nothing is left to map"


def test_a_map_that_costs_as_much_as_a_backfill_that_does_better_is_not_taken() -> None:
    no_map = arm("no_map", "switch", [0.1, 0.3, 0.5, 0.7, 0.9])
    ridge = arm("ridge", "map", [0.6, 0.62, 0.7, 0.8, 0.9], hours_before=50.0)
    assert choosing(KEEP, no_map, BOTH, ridge).at(0).arm.id == "keep", "fifty hours of backfill give 0.7"
    cheap = (replace(ridge[0], curve=[replace(p, hours=0.1) for p in ridge[0].curve]), ridge[1])
    assert choosing(KEEP, no_map, BOTH, cheap).at(0).arm.id == "ridge"


def test_keep_stays_where_all_is_worse() -> None:
    found = choosing(
        KEEP, arm("no_map", "switch", [0.0, 0.1, 0.2, 0.3, 0.9]), BOTH, arm("ridge", "map", [0.4, 0.5, 0.6, 0.7, 0.9])
    )
    assert found.at(0).arm.id == "keep"
    assert found.during().arm.id == "two_encoders"


@pytest.mark.parametrize(
    ("full", "words"), [(0.9, "The new encoder lifts recall at 10"), (0.3, "Keep the old encoder"), (0.5, "No gain shows")]
)
def test_the_headline_says_whether_to_change(full: float, words: str) -> None:
    both = arm("two_encoders", "two encoders", list(np.linspace(0.5, full, STAGES)))
    made = (KEEP, both)
    found = advise([a for a, _ in made], {a.id: m for a, m in made}, None, truth="queries", k=10, level=0.95)
    assert found.headline.startswith(words)


def test_a_dip_is_told() -> None:
    both = arm("two_encoders", "two encoders", [0.5, 0.3, 0.4, 0.6, 0.9])
    made = (KEEP, both)
    found = advise([a for a, _ in made], {a.id: m for a, m in made}, None, truth="queries", k=10, level=0.95)
    assert any(s.startswith("Mind the dip: with 25") for s in found.sentences)
    budget = advise([a for a, _ in made], {a.id: m for a, m in made}, None, truth="queries", k=10, level=0.95, hours=75.0)
    assert any(s.startswith("Within 75 hours 75") for s in budget.sentences)


@pytest.mark.parametrize(
    ("no_map", "ridge", "hours", "words"),
    [
        (0.7, 0.6, 0.0, "No map does better."),
        (0.7, 0.703, 0.0, "The map ridge finds 67.3 %, which is level within chance."),
        (
            *(0.1, 0.6, 50.0),
            "The map ridge finds 57.5 %, but no more than rows do that are re-encoded in the time that fitting it takes.",
        ),
        (0.1, 0.3, 0.0, "No map and no switch of the query encoder does better."),
    ],
)
def test_why_the_best_map_is_not_taken_is_said_as_it_is(no_map: float, ridge: float, hours: float, words: str) -> None:
    """What the table shows as higher is never called worse."""
    ends = [[first, 0.3, 0.5, 0.7, 0.9] for first in (no_map, ridge)]
    made = (KEEP, arm("no_map", "switch", ends[0]), BOTH, arm("ridge", "map", ends[1], hours_before=hours))
    found = advise([a for a, _ in made], {a.id: m for a, m in made}, None, truth="queries", k=10, level=0.95)
    assert found.now == ("no_map" if no_map > 0.5 else "keep")
    assert any(s.endswith(words) for s in found.sentences), found.sentences


def test_the_way_in_between_is_told_whatever_the_verdict_is() -> None:
    for full in (0.9, 0.3, 0.5):
        made = (KEEP, arm("two_encoders", "two encoders", list(np.linspace(0.5, full, STAGES))))
        found = advise([a for a, _ in made], {a.id: m for a, m in made}, None, truth="queries", k=10, level=0.95)
        assert found.during.arm == "two_encoders"
        assert any(s.startswith(f"While rows are re-encoded: {found.during.words}") for s in found.sentences)
