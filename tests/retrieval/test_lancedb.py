"""LanceDB: the user's own table, kills, readers beside a writer, changes that exclude one another."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from digits import OTHERS, PARTS, PIXELS, change_and_back, encoded, expect
from store_contract import CHECKS, maker, quick_folder

from instar.checks.index import Stores
from instar.errors import DataError, GenerationError, StoreError
from instar.interfaces import Floats, Generation
from instar.retrieval.opening import open_index

lancedb = pytest.importorskip("lancedb")
pa = pytest.importorskip("pyarrow")
from instar.retrieval.lancedb_store import LanceIndex  # noqa: E402

N = 300
VECTORS, QUERIES = encoded(N)


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_folder() as found:
        yield found


def fill(folder: Path, ids: list[Any], vectors: Floats = VECTORS[0], name: str = "docs") -> Any:
    """The table of an application, with columns of its own."""
    flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    table = pa.table({"title": [f"Title {i}" for i in range(len(ids))], "doc id": ids, "Vec tor": flat})
    return lancedb.connect(folder).create_table(name, table)


@pytest.mark.parametrize("ids", [list(range(N)), [f"row '{i}' % é" for i in range(N)]], ids=["integers", "texts"])
def test_a_change_of_a_table_that_exists(folder: Path, ids: list[Any]) -> None:
    fill(folder, ids)
    with pytest.raises(GenerationError, match="adopt"):
        LanceIndex.open(str(folder), "docs")
    index = LanceIndex.adopt(str(folder), "docs", PIXELS, id_column="doc id")
    beside = LanceIndex.open(str(folder), "docs", readonly=True)

    def again(index: Any) -> Any:
        expect(beside, ids, VECTORS, QUERIES, index.fetch(ids)[1])
        return LanceIndex.open(str(folder), "docs")

    change_and_back(index, ids, VECTORS, QUERIES, again)
    expect(beside, ids, VECTORS, QUERIES, [1] * N)
    kept = lancedb.connect(folder).open_table("docs").to_arrow()
    assert kept.column_names == ["title", "doc id", "Vec tor_g1"]
    assert dict(zip(kept["doc id"].to_pylist(), kept["title"].to_pylist(), strict=True)) == {
        name: f"Title {i}" for i, name in enumerate(ids)
    }


@pytest.mark.parametrize("name", CHECKS)
def test_contract(folder: Path, name: str) -> None:
    CHECKS[name](Stores(make=maker(lambda: f"lancedb:{tempfile.mkdtemp(dir=folder)}#made"), rows=240))


@pytest.mark.parametrize(("kind", "metric"), [("IvfFlat", "l2"), ("IvfPq", "cosine"), ("HnswSq", "dot")])
def test_an_approximate_index_at_every_stage(folder: Path, kind: str, metric: str) -> None:
    """The new column is indexed as the old one was; scores are cosines whatever the index compares by."""
    from lancedb import index as kinds

    table = fill(folder, list(range(N)))
    table.create_index("Vec tor", config=getattr(kinds, kind)(distance_type=metric))
    table.create_index("doc id", config=kinds.BTree())
    with LanceIndex.adopt(str(folder), "docs", PIXELS, id_column="doc id") as index:
        index.begin(PARTS)
        for start, end in ((0, 0), (0, 150), (150, 297), (297, 300)):
            index.move(list(range(start, end)), VECTORS[1][start:end], 1)
            true = {g: QUERIES[g] @ VECTORS[g].T for g in (0, 1)}
            scores = np.where(np.arange(N) < end, true[1], true[0])
            hits = index.search(QUERIES, 40)
            assert all(len(set(names)) == 40 for names in hits.ids.tolist())
            np.testing.assert_allclose(hits.scores, np.take_along_axis(scores, hits.ids.astype(int), 1), atol=1e-5)
            best = np.argsort(-scores, axis=1)[:, :40]
            assert np.mean([len({*a} & {*b}) / 40 for a, b in zip(hits.ids.tolist(), best.tolist(), strict=True)]) > 0.95
        index.finish()
    table.checkout_latest()
    made = {i.columns[0].strip("`"): (i.index_type, table.index_stats(i.name).distance_type) for i in table.list_indices()}
    assert made["Vec tor_g1"][1] == metric
    assert made["Vec tor_g1"][0].lower() in (kind.lower(), "ivf" + kind.lower())


def test_moves_write_the_rows_that_move(folder: Path) -> None:
    """Also where ids have an index, by which LanceDB would write a whole column for every batch."""
    vectors = np.tile(VECTORS[0], (30, 1))
    table = fill(folder, list(range(30 * N)), vectors)
    from lancedb.index import BTree

    table.create_index("doc id", config=BTree())
    with LanceIndex.adopt(str(folder), "docs", PIXELS, id_column="doc id") as index:
        index.begin(PARTS)
        before = size(folder)
        index.move(list(range(100)), VECTORS[1][:100], 1)
        assert size(folder) - before < 0.25 * len(vectors) * PARTS.dim * 4


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_tables_that_cannot_be_adopted(folder: Path) -> None:
    def adopt(name: str, generation: Generation = PIXELS, **options: Any) -> None:
        LanceIndex.adopt(str(folder), name, generation, **{"id_column": "doc id", **options})

    table = fill(folder, list(range(N)))
    with pytest.raises(DataError, match="64"):
        adopt("docs", Generation(0, "e", 65))
    with pytest.raises(StoreError, match="Say which"):
        adopt("docs", id_column=None)
    with pytest.raises(StoreError, match="fixed-size"):
        adopt("docs", vector_column="title")
    with pytest.raises(StoreError, match="type fixed"):
        adopt("docs", id_column="Vec tor")
    fill(folder, [0, *range(N - 1)], name="twice")
    with pytest.raises(DataError, match="1 repeated"):
        adopt("twice")
    fill(folder, [None, *range(N - 1)], name="without")
    with pytest.raises(DataError, match="1 empty"):
        adopt("without")
    fill(folder, list(range(N)), VECTORS[0] * np.float32(0), name="zeros")
    with pytest.raises(DataError, match="zero"):
        adopt("zeros")
    fill(folder, list(range(N)), VECTORS[0] * np.float32(2), name="long").create_index(
        "Vec tor", config=lancedb.index.IvfFlat(distance_type="dot")
    )
    with pytest.raises(DataError, match="not of length 1"):
        adopt("long")
    for name in ("elsewhere", "../docs", "a b", ""):
        with pytest.raises(StoreError):
            adopt(name)
    with pytest.raises(StoreError, match="no folder"):
        LanceIndex.open(str(folder / "nowhere"), "docs")
    assert table.schema.field("Vec tor").metadata is None
    adopt("docs")
    adopt("docs")
    with pytest.raises(GenerationError, match="stamped already"):
        adopt("docs", Generation(0, "another", 64))
    table.checkout_latest()
    table.update_field_metadata({"path": "Vec tor", "metadata": {"instar_generation": "{"}})
    with pytest.raises(StoreError, match="stamp"):
        LanceIndex.open(str(folder), "docs")


def test_vectors_of_any_length_compare_by_angle(folder: Path) -> None:
    fill(folder, list(range(N)), VECTORS[0] * np.float32(3))
    with LanceIndex.adopt(str(folder), "docs", PIXELS, id_column="doc id") as index:
        expect(index, list(range(N)), VECTORS, QUERIES, [0] * N)


@pytest.mark.parametrize("metric", ["l2", "dot"])
@pytest.mark.parametrize("unit", [True, False])
def test_an_index_by_another_distance_that_is_made_later(folder: Path, metric: str, unit: bool) -> None:
    """Of vectors of any length, which can be adopted, it ranks otherwise than by cosine: they are compared one by one."""
    from lancedb import index as kinds

    lengths = np.ones(N) if unit else np.random.default_rng(0).uniform(0.2, 3, N)
    table = fill(folder, list(range(N)), VECTORS[0] * lengths[:, None].astype(np.float32))
    with LanceIndex.adopt(str(folder), "docs", PIXELS, id_column="doc id") as index:
        table.checkout_latest()
        table.create_index("Vec tor", config=kinds.IvfFlat(distance_type=metric, num_partitions=1))
        for found in (index, LanceIndex.open(str(folder), "docs")):
            expect(found, list(range(N)), VECTORS, QUERIES, [0] * N)
            assert found._metric("Vec tor") == (metric if unit else None)


def test_rows_of_the_application(folder: Path) -> None:
    """What an application adds, empties and deletes during a change is right at once."""
    ids = list(range(N))
    table = fill(folder, ids)
    with LanceIndex.adopt(str(folder), "docs", PIXELS, id_column="doc id") as index:
        index.begin(PARTS)
        index.move(ids[:100], VECTORS[1][:100], 1)
        table.checkout_latest()
        table.delete("`doc id` IN (5, 200)")
        table.add([{"title": "again", "doc id": 200, "Vec tor": VECTORS[0][200]}, {"title": "empty", "doc id": 5}])
        where = [1] * 100 + [0] * (N - 100)
        where[5] = -1
        expect(index, ids, VECTORS, QUERIES, where)
        with pytest.raises(DataError, match=" 5 "):
            index.move([4, 5], VECTORS[1][4:6], 1)
        index.add([5], VECTORS[1][5:6], 1)
        where[5] = 1
        expect(index, ids, VECTORS, QUERIES, where)
        with pytest.raises(GenerationError, match="only"):
            index.rollback()
        with pytest.raises(DataError, match="int64"):
            index.move(["1"], VECTORS[1][:1], 1)
    table.checkout_latest()
    assert table.search().where("`doc id` = 5").to_list()[0]["title"] == "empty"


def test_rows_that_an_application_adds_while_finish_runs(folder: Path) -> None:
    """None loses its vector: `finish` is refused until all have moved, whatever the moment in which a row comes."""
    ids = list(range(N))
    table = fill(folder, ids)
    added: list[int] = []
    refusals: list[str] = []

    def application() -> None:
        try:
            for name in range(N, N + 400):
                table.checkout_latest()
                table.add([{"title": "new", "doc id": name, "Vec tor": VECTORS[0][name % N]}])
                added.append(name)
        except (RuntimeError, ValueError):
            pass  # the old column is gone

    with LanceIndex.adopt(str(folder), "docs", PIXELS, id_column="doc id") as index:
        index.begin(PARTS)
        thread = threading.Thread(target=application)
        thread.start()
        while len(index.generations()) > 1:
            left = index.ids(0)
            index.move(left, VECTORS[1][np.array(left, dtype=int) % N], 1)
            try:
                index.finish()
            except (GenerationError, StoreError) as error:
                refusals.append(str(error))
        thread.join()
        assert all("still stand" in one or "ommit" in one for one in refusals)
        assert index.counts() == {1: N + len(added)}
        vectors, _ = index.fetch([*ids, *added])
        np.testing.assert_allclose(vectors, VECTORS[1][np.array([*ids, *added]) % N], atol=1e-6)


def test_a_writer_that_was_overtaken(folder: Path) -> None:
    ids = list(range(N))
    fill(folder, ids)
    first = LanceIndex.adopt(str(folder), "docs", PIXELS, id_column="doc id")
    first.begin(PARTS)
    second = LanceIndex.open(str(folder), "docs")
    second.rollback()
    with pytest.raises(GenerationError):
        first.move(ids[:9], VECTORS[1][:9], 1)
    second.begin(OTHERS)
    with pytest.raises(GenerationError, match="opened it anew"):
        first.move(ids[:9], VECTORS[1][:9], 1)
    second.move(ids[:9], VECTORS[1][:9], 1)
    expect(first, ids, VECTORS, QUERIES, [1] * 9 + [0] * (N - 9))
    with LanceIndex.open(str(folder), "docs", readonly=True) as reader, pytest.raises(StoreError, match="read only"):
        reader.rollback()


def test_two_writers_at_once_add_every_row_once(folder: Path) -> None:
    """LanceDB itself would let both insert the same ids."""
    with open_index(f"lancedb:{folder}#made", create=PIXELS) as index:
        index.add([10_000], VECTORS[0][:1], 0)
    refused: list[int] = []

    def add() -> None:
        with open_index(f"lancedb:{folder}#made") as index:
            for name in range(15):
                try:
                    index.add([name], VECTORS[0][name : name + 1], 0)
                except DataError:
                    refused.append(name)

    threads = [threading.Thread(target=add) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(refused) == list(range(15))
    assert lancedb.connect(folder).open_table("made").count_rows() == 16


def test_a_folder_that_goes_away(folder: Path) -> None:
    place = folder / "inner"
    fill(place, list(range(N)))
    index = LanceIndex.adopt(str(place), "docs", PIXELS, id_column="doc id")
    index.begin(PARTS)
    shutil.move(place, folder / "away")
    with pytest.raises(StoreError):
        index.move([1], VECTORS[1][1:2], 1)
    with pytest.raises(StoreError):
        index.search(QUERIES, 3)
    shutil.move(folder / "away", place)
    expect(index, list(range(N)), VECTORS, QUERIES, [0] * N)
