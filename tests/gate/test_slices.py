"""Slices: which columns are any, and the same from every format."""

from __future__ import annotations

import numpy as np
import pytest
from made_predictions import flipped, version

from instar.errors import PlanError
from instar.gate import slices
from instar.gate.flips import share
from instar.gate.judge import judge
from instar.gate.policy import Policy, SliceLimits

N = 400
RIGHT = np.arange(N) % 10 > 0


def test_values_that_mean_the_same_are_one_slice() -> None:
    found, _ = slices.code({"mix": [1, "1", 1.0, "1 ", None, "x"] * 20})
    names, codes = found["mix"]
    assert names == ["1", "(empty)", "x"]
    assert np.bincount(codes).tolist() == [80, 20, 20]


def test_numbers_of_a_csv_are_numbers() -> None:
    numbers = [float(i * 7 % 101) for i in range(N)]
    assert slices.code({"n": numbers})[0]["n"][0] == slices.code({"n": [str(x) for x in numbers]})[0]["n"][0]
    names, codes = slices.code({"n": [*numbers[1:], None]})[0]["n"]
    assert names[-1] == "(empty)"
    assert np.bincount(codes)[-1] == 1
    assert len(slices.code({"n": numbers})[0]["n"][0]) == 4  # no quarter without an item


def test_odd_numbers() -> None:
    values = [10**400, float("inf"), -float("inf"), *range(100)]
    found, left_out = slices.code({"huge": values, "inf": values[1:]})
    assert "huge" not in left_out
    assert len(found["inf"][1]) == len(values) - 1


def test_columns_that_are_no_slices() -> None:
    found, left_out = slices.code({"one": ["x"] * 9, **{f"c{i}": ["a", "b", "c"] * 3 for i in range(2000)}})
    assert "every item has the value x" in left_out["one"]
    assert sum(len(names) for names, _ in found.values()) <= 5000
    assert "more than 5000 slices" in left_out["c1999"]


def test_blocks_are_those_of_the_slice() -> None:
    columns = {"half": ["a" if i < 200 else "b" for i in range(N)], "document": [f"d{i // 10}" for i in range(N)]}
    new = version("new", flipped(RIGHT, [i for i in range(N) if RIGHT[i] and (i // 10) % 8 == 0]))
    found = judge(version("old", RIGHT, columns=columns), new, block="document")
    for one in (s for s in found.slices if s.column == "half"):
        places = np.flatnonzero(np.array(columns["half"]) == one.value)
        lost = RIGHT[places] & ((places // 10) % 8 == 0)
        assert one.nfr == share(lost, np.unique(places // 10, return_inverse=True)[1], 0.95)


def test_budgets_for_any_value_of_any_column() -> None:
    columns = {
        "who": [f"user {i}" for i in range(N)],
        "n": list(range(N)),
        "mix": [1 if i % 2 else "1" for i in range(N)],
        "one": ["x"] * N,
    }
    old, new = version("old", RIGHT, columns=columns), version("new", flipped(RIGHT, [5]))

    def asked(**limits: object) -> list:
        policy = Policy(max_nfr=0.5, slices=(SliceLimits(max_flips=0, **limits),))  # type: ignore[arg-type]
        return [(t.scope, t.items, t.decision) for t in judge(old, new, policy=policy).tests[1:]]

    assert asked(column="who", value="user 5") == [("who = user 5", 1, "fail")]
    assert asked(column="n", value="5") == [("n = 5", 1, "fail")]  # though the column is cut at its quartiles
    assert asked(column="n", value="≤ 99") == [("n = ≤ 99", 100, "fail")]
    assert asked(column="mix", value="1") == [("mix = 1", N, "fail")]  # the text and the number
    assert asked(column="one") == [("one = x", N, "fail")]
    assert [d for _, _, d in asked(column="n")] == ["fail", "pass", "pass", "pass"]
    with pytest.raises(PlanError, match="every value of 'who', but it has 400"):
        asked(column="who")
