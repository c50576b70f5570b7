"""FAISS files that exist: recall does not drop while rows move, FAISS reads what results, what cannot change is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from digits import PARTS, PIXELS, encoded, recall, recall_stays, unit

from instar.errors import DataError, GenerationError, ShapeError, StoreError
from instar.interfaces import Floats, Generation
from instar.retrieval.approximate import ApproximateSpace
from instar.retrieval.faiss_files import Form
from instar.retrieval.faiss_index import FaissIndex
from instar.retrieval.faiss_spaces import FaissSpace
from instar.retrieval.opening import adopt_index, open_index

IP, L2 = faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2


def clustered(rows: int, dim: int, seed: int = 0) -> tuple[Floats, Floats]:
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((40, dim))
    found = unit(centres[generator.integers(0, 40, rows + 50)] + 0.7 * generator.standard_normal((rows + 50, dim)))
    return found[:rows], found[rows:]


def built(factory: str, metric: int, vectors: Floats) -> Any:
    index = faiss.index_factory(vectors.shape[1], factory, metric)
    index.train(vectors)
    index.add(vectors)
    return index


@pytest.mark.parametrize(
    ("factory", "metric", "setting"),
    [("HNSW8", IP, ("efSearch", 30)), ("HNSW8", L2, ("efSearch", 30)), ("IVF30,Flat", IP, ("nprobe", 10))],
)
def test_recall_does_not_drop_when_rows_have_left(factory: str, metric: int, setting: tuple[str, int], tmp_path: Path) -> None:
    """Within the old generation, against the recall of FAISS alone on all rows: at every share that is left."""
    points = unit(np.random.default_rng(0).standard_normal((8100, 16)))
    vectors, queries = points[:8000], points[8000:]
    index = built(factory, metric, vectors)
    setattr(getattr(index, "hnsw", index), *setting)
    before = recall(index.search(queries, 10)[1], queries, vectors, np.arange(8000), 10)
    assert 0.7 < before < 0.9999  # or it would say nothing
    faiss.write_index(index, str(tmp_path / "own.faiss"))
    with FaissIndex.adopt(str(tmp_path / "own.faiss"), generation=Generation(0, "old", 16)) as change:
        recall_stays(change, vectors, queries, before)


@pytest.mark.parametrize("factory", ["Flat", "IDMap,Flat", "IDMap2,HNSW8", "HNSW8", "IVF4,Flat"])
@pytest.mark.parametrize("metric", [IP, L2])
def test_faiss_itself_reads_what_finish_wrote(factory: str, metric: int, tmp_path: Path) -> None:
    vectors, queries = encoded(400)
    place = tmp_path / "digits.faiss"
    index = faiss.index_factory(PIXELS.dim, factory, metric)
    index.train(vectors[0])
    ids = np.arange(400) * 3 + 7 if factory.startswith(("ID", "IVF")) else np.arange(400)
    if factory.startswith(("ID", "IVF")):
        index.add_with_ids(vectors[0], ids)
    else:
        index.add(vectors[0])
    faiss.write_index(index, str(place))
    before = place.read_bytes()
    with adopt_index(str(place), PIXELS) as change:
        change.begin(PARTS)
        order = np.random.default_rng(0).permutation(400)
        for part in np.array_split(order, 5):
            change.move(ids[part].tolist(), vectors[1][part], 1)
        assert place.read_bytes() == before
        change.remove([int(ids[5])])
        change.finish()
    own = faiss.read_index(str(place))
    assert (own.d, own.ntotal, own.metric_type) == (PARTS.dim, 399, metric)
    if "IVF" in factory:
        own.nprobe = own.nlist
    kept = np.delete(np.arange(400), 5)
    found = own.search(queries[1], 10)[1]
    true = ids[kept[np.argsort(-(queries[1] @ vectors[1][kept].T), axis=1)[:, :10]]]
    assert np.mean([len(set(a) & set(b)) for a, b in zip(found.tolist(), true.tolist(), strict=True)]) > 9.5
    with open_index(str(place), readonly=True) as again:
        assert again.generations() == [PARTS]
        assert again.counts() == {1: 399}


def test_a_list_of_ids_and_texts(tmp_path: Path) -> None:
    vectors, queries = encoded(100)
    names = [f"scan {i}" for i in range(100)]
    place = tmp_path / "digits.faiss"
    faiss.write_index(built("Flat", IP, vectors[0]), str(place))
    (tmp_path / "names.txt").write_text("\n".join(names))
    with pytest.raises(DataError, match="2 ids for 100"):
        adopt_index(str(place), PIXELS, ids=["a", "b"])
    with adopt_index(str(place), PIXELS, ids=tmp_path / "names.txt") as change:
        change.begin(PARTS)
        change.move(names[::-1], vectors[1][::-1].copy(), 1)
        change.add(["another"], vectors[1][:1], 1)
        change.finish()
    with open_index(f"faiss:{place}") as again:
        assert set(again.ids(1)) == {*names, "another"}
        assert np.array_equal(np.stack(again.fetch(names)[0]), vectors[1])
        assert again.search(queries, 3).ids.shape == (12, 3)
    mapped = faiss.IndexIDMap2(faiss.IndexFlatIP(PIXELS.dim))
    mapped.add_with_ids(vectors[0], np.arange(100) + 50)
    faiss.write_index(mapped, str(tmp_path / "mapped.faiss"))
    with pytest.raises(StoreError, match="under other numbers"):
        adopt_index(str(tmp_path / "mapped.faiss"), PIXELS, ids=names)


@pytest.mark.parametrize("factory", ["PQ2x4", "SQ8", "HNSW8_SQ8", "IVF4,PQ2x4", "PCA8,Flat", "LSH"])
def test_quantised_indexes_are_refused_with_what_to_do(factory: str, tmp_path: Path) -> None:
    vectors, _ = encoded(400)
    faiss.write_index(built(factory, L2, vectors[0]), str(tmp_path / "own.faiss"))
    before = (tmp_path / "own.faiss").read_bytes()
    with pytest.raises(StoreError, match=r"rebuild it from the full vectors.*project\(x, generation\)"):
        adopt_index(str(tmp_path / "own.faiss"), PIXELS)
    assert (tmp_path / "own.faiss").read_bytes() == before


def test_other_refusals(tmp_path: Path) -> None:
    vectors, _ = encoded(60)
    place = str(tmp_path / "own.faiss")
    faiss.write_index(built("Flat", faiss.METRIC_L1, vectors[0]), place)
    with pytest.raises(StoreError, match="metric 2"):
        adopt_index(place, PIXELS)
    faiss.write_index(built("Flat", IP, vectors[0] * 2), place)
    with pytest.raises(DataError, match="not unit vectors: length 2"):
        adopt_index(place, PIXELS)
    faiss.write_index(built("Flat", IP, vectors[0]), place)
    with pytest.raises(ShapeError, match="64 dimensions, the generation says 65"):
        adopt_index(place, Generation(0, "old", 65))
    with pytest.raises(GenerationError, match="adopt"):
        open_index(place)
    with pytest.raises(StoreError, match="There is no file"):
        adopt_index(str(tmp_path / "nothing.faiss"), PIXELS)
    twice = faiss.IndexIDMap(faiss.IndexFlatIP(64))
    twice.add_with_ids(vectors[0], np.zeros(60, np.int64))
    faiss.write_index(twice, place)
    with pytest.raises(StoreError, match="1 different ids for 60 vectors"):
        adopt_index(place, PIXELS)
    adopt_index_again = tmp_path / "again.faiss"
    faiss.write_index(built("Flat", IP, vectors[0]), str(adopt_index_again))
    adopt_index(str(adopt_index_again), PIXELS).close()
    faiss.write_index(built("Flat", IP, vectors[0][::-1].copy()), str(adopt_index_again))
    with pytest.raises(StoreError, match="another program has written it"):
        open_index(str(adopt_index_again))


@pytest.mark.parametrize("factory", ["Flat", "IDMap2,HNSW8", "IVF4,Flat"])
def test_truncated_and_hostile_files(factory: str, tmp_path: Path) -> None:
    vectors, _ = encoded(60)
    place = tmp_path / "own.faiss"
    index = faiss.index_factory(64, factory, IP)
    index.train(vectors[0])
    index.add_with_ids(vectors[0], np.arange(60)) if "ID" in factory else index.add(vectors[0])
    faiss.write_index(index, str(place))
    whole = place.read_bytes()
    for size in (0, 3, 4, 40, 100, len(whole) // 2, len(whole) - 1):
        place.write_bytes(whole[:size])
        with pytest.raises(StoreError, match="damaged"):
            adopt_index(str(place), PIXELS)
    place.write_bytes(b"IwFl" + b"\xff" * 200)
    with pytest.raises(StoreError, match=r"damaged|is an"):
        adopt_index(str(place), PIXELS)


def test_cells_are_chosen_when_there_are_rows_enough() -> None:
    vectors, queries = clustered(1500, 16)
    spaces = [FaissSpace(16, Form("cells", IP, cells=20, probes=20)) for _ in range(2)]
    for space in spaces:
        for part in np.array_split(vectors, 15):
            space.add(part)
            assert space.index.is_trained == (len(space) >= 780)
        space.drop(np.arange(0, 1500, 2))
        scores, slots = space.search(queries, 5)
        np.testing.assert_allclose(scores, -np.sort(-(queries @ vectors[1::2].T), axis=1)[:, :5], atol=1e-5)
        np.testing.assert_array_equal(space.vectors(slots[:, 0]), vectors[slots[:, 0]])
    first, second = (faiss.vector_to_array(faiss.downcast_index(s.index.quantizer).codes) for s in spaces)
    assert np.array_equal(first, second)  # every process gets the same cells


@pytest.mark.parametrize(("step", "first"), [(2, 5), (10**12, 5), (10**12, -(10**15)), (1, -3001)])
@pytest.mark.parametrize("metric", [IP, L2])
def test_cells_under_any_numbers(step: int, first: int, metric: int) -> None:
    """Ids of the user's own choice in an inverted file: near together (one bit each) or far apart (a set), negative ones too."""
    from instar.retrieval import faiss_files

    vectors, queries = clustered(3000, 16)
    ids = np.random.default_rng(0).permutation(3000) * step + first
    index = faiss.index_factory(16, "IVF10,Flat", metric)
    index.train(vectors)
    index.add_with_ids(vectors, ids)
    index.nprobe = 10
    order = np.argsort(ids)
    keys = faiss_files._keys_of_cells(faiss, index)
    held = faiss_files.Opened(index, Form("cells", metric, cells=10, probes=10), keys, keys, index)
    space: ApproximateSpace = FaissSpace(16, held.form, held)
    space.drop(np.arange(0, 3000, 3))
    left = np.setdiff1d(np.arange(3000), np.arange(0, 3000, 3))
    rows = order[np.searchsorted(ids[order], keys[left])]
    scores, slots = space.search(queries, 7)
    np.testing.assert_allclose(scores, -np.sort(-(queries @ vectors[rows].T), axis=1)[:, :7], atol=1e-5)
    assert not (slots % 3 == 0).any()


def test_the_id_by_which_faiss_means_nothing_is_refused(tmp_path: Path) -> None:
    vectors, _ = clustered(400, 16)
    index = faiss.index_factory(16, "IVF4,Flat", IP)
    index.train(vectors)
    index.add_with_ids(vectors, np.arange(400) - 1)
    faiss.write_index(index, str(tmp_path / "own.faiss"))
    with pytest.raises(DataError, match="id −1"):
        adopt_index(str(tmp_path / "own.faiss"), Generation(0, "old", 16))
