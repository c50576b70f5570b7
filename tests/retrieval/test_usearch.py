"""usearch files that exist: recall does not drop while rows move, usearch reads what results, what cannot change is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import usearch.index
from digits import PARTS, PIXELS, encoded, recall, recall_stays, unit

from instar.errors import DataError, GenerationError, ShapeError, StoreError
from instar.interfaces import Floats, Generation
from instar.retrieval.opening import adopt_index, open_index
from instar.retrieval.usearch_index import UsearchIndex
from instar.retrieval.verify import Verification


def built(place: Path, vectors: Floats, keys: Any, **options: Any) -> Path:
    index = usearch.index.Index(ndim=vectors.shape[1], **{"metric": "cos", "dtype": "f32", **options})
    index.add(keys, vectors)
    index.save(str(place))
    return place


def test_recall_does_not_drop_when_rows_have_left(tmp_path: Path) -> None:
    points = unit(np.random.default_rng(0).standard_normal((8100, 16)))
    vectors, queries = points[:8000], points[8000:]
    place = built(tmp_path / "own.usearch", vectors, np.arange(8000), connectivity=6)
    alone = usearch.index.Index.restore(str(place))
    before = recall(alone.search(queries, 10).keys, queries, vectors, np.arange(8000), 10)
    assert 0.7 < before < 0.9999  # or it would say nothing
    with UsearchIndex.adopt(str(place), generation=Generation(0, "old", 16)) as change:
        hits = recall_stays(change, vectors, queries, before)
        one = change.nearest(0, queries[:1], 10)  # usearch answers a single query in another form
        assert np.array_equal(one.ids, hits.ids[:1])


@pytest.mark.parametrize(("metric", "dtype", "near"), [("cos", "f32", 1e-6), ("ip", "f16", 2e-3), ("cos", "bf16", 8e-3)])
def test_usearch_itself_reads_what_finish_wrote(metric: str, dtype: str, near: float, tmp_path: Path) -> None:
    vectors, queries = encoded(300)
    keys = np.arange(300) * 3 + 7
    place = built(tmp_path / "digits.usearch", vectors[0], keys, metric=metric, dtype=dtype)
    before = place.read_bytes()
    with adopt_index(str(place), PIXELS) as change:
        change.begin(PARTS)
        order = np.random.default_rng(0).permutation(300)
        for part in np.array_split(order, 5):
            change.move(keys[part].tolist(), vectors[1][part], 1)
            found = np.stack(change.fetch(keys[part].tolist())[0])
            np.testing.assert_allclose(found, vectors[1][part], atol=near)
            np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
        assert place.read_bytes() == before
        change.remove([int(keys[5])])
        change.finish()
    own = usearch.index.Index.restore(str(place))
    assert (own.ndim, len(own), own.dtype.name.lower()) == (PARTS.dim, 299, dtype)
    true = np.delete(keys, 5)[np.argsort(-(queries[1] @ np.delete(vectors[1], 5, 0).T), axis=1)[:, :10]]
    found = own.search(queries[1], 10).keys
    assert np.mean([len(set(a) & set(b)) for a, b in zip(found.tolist(), true.tolist(), strict=True)]) > 9.3
    with open_index(str(place), readonly=True) as again:
        assert (again.generations(), again.counts()) == ([PARTS], {1: 299})


def test_what_bfloat16_rounds_is_not_taken_for_spoilt(tmp_path: Path) -> None:
    """Coordinates near 1 are the worst: bfloat16 keeps 8 bits of each."""
    angles = np.linspace(0.1, 1.4, 40)
    vectors = unit(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    place = built(tmp_path / "own.usearch", vectors, np.arange(40), dtype="bf16")
    with adopt_index(str(place), Generation(0, "old", 2)) as change:
        change.begin(Generation(1, "new", 2))
        change.move(list(range(40)), vectors[::-1].copy(), 1)
        found = np.stack(change.fetch(list(range(40)))[0])
        assert np.abs(found - vectors[::-1]).max() > Verification.tolerance
        check = Verification(sample=40)
        check.batch(change, list(range(40)), vectors[::-1].copy(), 1)
        assert check.checked == 40
        spoilt = unit(vectors[::-1] + np.array([0.02, 0.0]))
        with pytest.raises(StoreError, match="do not hold the vectors"):
            Verification(sample=40).batch(change, list(range(40)), spoilt, 1)


def test_a_list_of_ids(tmp_path: Path) -> None:
    vectors, _ = encoded(60)
    names = [f"scan {i}" for i in range(60)]
    place = built(tmp_path / "own.usearch", vectors[0], np.arange(60))
    with adopt_index(str(place), PIXELS, ids=names) as change:
        change.begin(PARTS)
        change.move(names[::-1], vectors[1][::-1].copy(), 1)
        change.finish()
    with open_index(f"usearch:{place}") as again:
        assert np.array_equal(np.stack(again.fetch(names)[0]), vectors[1])
    built(place := tmp_path / "other.usearch", vectors[0], np.arange(60) + 1)
    with pytest.raises(StoreError, match="under other numbers"):
        adopt_index(str(place), PIXELS, ids=names)


def test_refusals(tmp_path: Path) -> None:
    vectors, _ = encoded(60)
    place = tmp_path / "own.usearch"
    keys = np.arange(60)
    with pytest.raises(StoreError, match="There is no file"):
        adopt_index(str(place), PIXELS)
    for options, words in (({"dtype": "i8"}, "as I8"), ({"metric": "l2sq"}, "L2sq"), ({"multi": True}, "several a key")):
        built(place, vectors[0], keys, **options)
        with pytest.raises(StoreError, match=words):
            adopt_index(str(place), PIXELS)
    built(place, vectors[0], keys, metric="ip")
    with pytest.raises(ShapeError, match="64 dimensions"):
        adopt_index(str(place), Generation(0, "old", 65))
    with pytest.raises(GenerationError, match="adopt"):
        open_index(str(place))
    built(place, vectors[0] * 2, keys, metric="ip")
    with pytest.raises(DataError, match="not unit vectors"):
        adopt_index(str(place), PIXELS)
    built(place, vectors[0], keys.astype(np.uint64) + np.uint64(2**63))
    with pytest.raises(DataError, match=r"2\^63"):
        adopt_index(str(place), PIXELS)


def test_truncated_and_hostile_files(tmp_path: Path) -> None:
    vectors, _ = encoded(60)
    place = built(tmp_path / "own.usearch", vectors[0], np.arange(60))
    whole = place.read_bytes()
    for size in (0, 3, 64, len(whole) // 2, len(whole) - 40):
        place.write_bytes(whole[:size])
        with pytest.raises(StoreError, match="damaged"):
            adopt_index(str(place), PIXELS)
