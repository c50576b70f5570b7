"""Values that mean the same: an equivalence, in which nothing that differs is lost."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instar.gate import values
from instar.gate.values import canonical

JSON: Any = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.sampled_from(["1", "1.0", "007"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@pytest.mark.parametrize(
    "alike",
    [[1, 1.0, "1", "1.0", " 1 ", "+1", "1e0"], [True, "true"], [0.1 + 0.2, "0.3", 0.3], [0, -0.0, "-0"], ["é", "e\u0301"]],
)
def test_what_means_the_same(alike: list[Any]) -> None:
    assert len({canonical(value) for value in alike}) == 1


@pytest.mark.parametrize(
    "apart",
    [
        ["12345678901234567890", "12345678901234567891"],  # a float would hold both
        [2**53, 2**53 + 1],
        ["1234567890123.5", "1234567890123.4"],
        ["007", "7"],
        ["1_000", "1000"],
        ["1e999", "2e999"],
        [1, True],
        ["9" * 500, "9" * 501],
    ],
)
def test_what_does_not(apart: list[Any]) -> None:
    assert len({canonical(value) for value in apart}) == len(apart)


@given(JSON)
def test_canonical_is_its_own(value: Any) -> None:
    assert canonical(canonical(value)) == canonical(value)


@given(st.lists(JSON, max_size=12))
def test_codes_give_the_values_back(items: list[Any]) -> None:
    distinct, codes = values.coded(items)
    assert [canonical(distinct[c]) for c in codes] == [canonical(v) for v in items]
    assert [type(distinct[c]) for c in codes] == [type(v) for v in items]
    assert list(dict.fromkeys(codes.tolist())) == list(range(len(distinct)))  # in order of appearance
    names, merged = values.named(items)
    assert len(set(names)) == len(names)
    assert [names[c] for c in merged] == ["(empty)" if v is None else canonical(v) for v in items]


@given(JSON)
def test_written_json_is_utf8_and_comes_back(value: Any) -> None:
    assert json.loads(values.as_json(value).encode().decode()) == value


def test_half_characters_are_escaped() -> None:
    assert json.loads(values.as_json({"\ud800": "a\udfffé"}).encode().decode()) == {"\ud800": "a\udfffé"}


def test_choices() -> None:
    among = ["Rome", "Paris", "0"]
    assert [values.choice(said, among) for said in ("Paris", 1, "1", "B", "0", 3, -1, True, "b", None, ["Paris"])] == [
        *["Paris"] * 4,
        "0",
        *[None] * 6,
    ]


def test_numbers() -> None:
    assert [values.number(v) for v in ("1.5", 2, " 3 ", "x", True, None, "nan", 10**400)] == [1.5, 2, 3, *[None] * 5]
    assert np.isinf(values.number(float("inf")) or 0)
