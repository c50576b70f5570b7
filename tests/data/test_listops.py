"""ListOps: values that an independent reader finds, and sequences that keep to the grammar."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instar.bench.seeds import stream
from instar.data import listops
from instar.errors import DataError

SMALL = {"tree_depth": 4, "args": 4, "shortest": 8, "longest": 40}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[MAX 2 9 [MIN 4 7 ] 0 ]", 9),
        ("[MIN 4 7 ]", 4),
        ("[MED 8 1 5 ]", 5),
        ("[MED 4 1 2 9 ]", 3),
        ("[MED 9 2 3 1 ]", 2),
        ("[SM 9 9 3 ]", 1),
        ("[SM [MAX 1 8 ] [MED 0 9 ] [MIN 6 [SM 5 5 ] ] ]", 2),
        ("7", 7),
    ],
)
def test_hand_cases(text: str, value: int) -> None:
    assert listops.value(text) == value


@pytest.mark.parametrize(
    "text", ["", "[MAX 1 2", "1 2", "[MAX ]", "]", "[MAX 1 12 ]", "[SUM 1 2 ]", "[MAX 1 2 ] ]", "[MAX 1 ² ]"]
)
def test_what_is_no_list_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="is no list"):
        listops.value(text)


@settings(max_examples=6, deadline=None)
@given(st.integers(2, 6), st.integers(2, 7), st.integers(0, 99))
def test_every_value_is_what_a_reader_finds(tree_depth: int, args: int, seed: int) -> None:
    rows, values = listops.rows(120, tree_depth=tree_depth, args=args, shortest=4, longest=60, generator=stream(seed, "x"))
    assert [listops.value(listops.show(row)) for row in rows] == values.tolist()
    assert len({row.tobytes() for row in rows}) == len(rows) == 120
    for row in rows:
        opened = (row >= 10) & (row < listops.END)
        height = np.cumsum(opened * 1 - (row == listops.END))
        assert 4 <= len(row) <= 60
        assert int(height.max()) < tree_depth
        assert height[-1] == 0
        assert (height[:-1] > 0).all()  # one expression, from an operator at its root


def test_operators_take_two_to_args_members() -> None:
    rows, _ = listops.rows(300, **SMALL, generator=stream(0, "x"))  # type: ignore[arg-type]
    members: list[int] = []
    for row in rows:
        stack: list[int] = []
        for token in row.tolist():
            if token == listops.END:
                members.append(stack.pop())
            if token < 10 or token == listops.END:
                if stack:
                    stack[-1] += 1
            else:
                stack.append(0)
    assert set(members) == {2, 3, 4}


def test_all_operators_and_digits_occur_about_equally() -> None:
    """Among operators and among digits the draw is uniform; only the length of a sequence is chosen by."""
    rows, _ = listops.rows(3000, **SMALL, generator=stream(1, "x"))  # type: ignore[arg-type]
    counts = np.bincount(np.concatenate(rows), minlength=len(listops.SYMBOLS))
    assert counts[10 : listops.END].sum() == counts[listops.END]
    for part in (counts[:10], counts[10 : listops.END]):
        assert (abs(part / part.mean() - 1) < 0.1).all()


def test_the_generator_alone_decides() -> None:
    first, second, other = (listops.rows(50, **SMALL, generator=stream(s, "x")) for s in (0, 0, 1))  # type: ignore[arg-type]
    assert all(np.array_equal(a, b) for a, b in zip(first[0], second[0], strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first[0], other[0], strict=True))


def test_lengths_that_the_grammar_cannot_make() -> None:
    with pytest.raises(DataError, match="of 200 to 256 tokens"):
        listops.rows(10, tree_depth=2, args=3, shortest=200, longest=256, generator=stream(0, "x"))
