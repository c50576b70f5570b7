"""CLINC150 as cases: balanced draws that repeat, ids that stay, examples from the train split only."""

from __future__ import annotations

import os
from collections import Counter

import pytest

from instar.data.intents import clinc150_cases
from instar.errors import DataError, UnknownNameError

pytestmark = pytest.mark.skipif("INSTAR_DATA" not in os.environ, reason="INSTAR_DATA names no folder of data sets")


def test_the_whole_test_split() -> None:
    cases = clinc150_cases(examples_per_class=None)
    assert len(cases) == 4500
    assert len(cases.examples) == 15000
    assert set(Counter(cases.labels).values()) == {30}
    assert len(set(cases.columns["domain"])) == 10
    assert cases.labels is not None
    assert set(cases.labels) == {label for _, label in cases.examples}


def test_draws_are_balanced_and_repeat() -> None:
    one, again, other = (clinc150_cases(per_class=2, examples_per_class=3, seed=seed) for seed in (0, 0, 1))
    assert one == again
    assert one.ids != other.ids
    assert set(Counter(one.labels).values()) == {2}
    assert set(Counter(label for _, label in one.examples).values()) == {3}
    assert clinc150_cases("val", per_class=1, examples_per_class=0).examples == []
    everything = clinc150_cases()
    place = everything.ids.index(one.ids[7])
    assert everything.inputs[place] == one.inputs[7]


def test_wrong_sizes_and_splits() -> None:
    with pytest.raises(DataError, match="1 to 30"):
        clinc150_cases(per_class=31)
    with pytest.raises(UnknownNameError, match="val"):
        clinc150_cases("vale")
