"""What teaches, what predicts and what checks stay apart."""

from __future__ import annotations

import numpy as np
import pytest
from digits_upgrades import upgrade

from instar.data.collection import Collection
from instar.errors import DataError
from instar.upgrade.measure import answered
from instar.upgrade.split import split


@pytest.mark.parametrize("queries", [False, True])
def test_parts_share_nothing(queries: bool) -> None:
    collection, old, new = upgrade("cleaner", queries=queries)
    parts = split(collection, answered(collection, old, new, 10), seed=3)
    assert not set(parts.fit) & set(parts.gallery)
    assert len(parts.fit) + len(parts.gallery) == len(collection)
    asking = [set(parts.choose), set(parts.predict), set(parts.held_out)]
    assert not asking[1] & asking[2]
    assert not asking[0] & (asking[1] | asking[2])
    if collection.relevant is None:
        assert (asking[0] | asking[1] | asking[2]) <= set(parts.gallery)
    else:
        gallery = set(parts.gallery)
        for query in asking[1] | asking[2]:
            assert set(collection.relevant[query]) <= gallery


def test_halves_are_alike_in_how_either_encoder_alone_answers_them() -> None:
    collection, old, new = upgrade("cleaner")
    by = answered(collection, old, new, 10)
    parts = split(collection, by, seed=1)
    predict, held_out = (by(parts.gallery, part) for part in (parts.predict, parts.held_out))
    assert predict.shape[1] == 4
    np.testing.assert_array_less(np.abs(predict.mean(0) - held_out.mean(0)), 0.1 * predict.std(0) / np.sqrt(len(predict)) + 1e-3)


def test_the_seed_decides() -> None:
    collection, old, new = upgrade("cleaner")
    by = answered(collection, old, new, 10)
    one, same, other = (split(collection, by, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(one.predict, same.predict)
    assert set(one.predict) != set(other.predict)


def test_too_little_is_refused() -> None:
    few = Collection("few", [str(i) for i in range(30)])
    with pytest.raises(DataError, match=r"few: 22 documents can ask for others .* need 40 or more"):
        split(few, lambda gallery, queries: np.zeros((len(queries), 4)))
    with pytest.raises(DataError, match="of 30, 30 to fit on leave too few"):
        split(few, lambda gallery, queries: np.zeros((len(queries), 4)), pairs=30)
