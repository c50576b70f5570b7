"""Qdrant in local mode: the user's own collection, its payloads and other vectors, interruptions, the lock on its folder."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from digits import OTHERS, PARTS, PIXELS, change_and_back, encoded, expect, unit
from store_contract import CHECKS, maker, quick_folder

from instar.checks.index import Stores
from instar.errors import DataError, GenerationError, StoreError
from instar.interfaces import Generation
from instar.retrieval.opening import adopt_index, open_index

qdrant = pytest.importorskip("qdrant_client")
from instar.retrieval.qdrant_store import QdrantIndex  # noqa: E402

N = 150
VECTORS, QUERIES = encoded(N)
UUIDS = [str(uuid.UUID(int=i * 7919)) for i in range(N)]


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_folder() as found:
        yield found


def fill(folder: Path, ids: list[Any], *, named: bool = True, distance: str = "COSINE", length: float = 1.0) -> None:
    """The collection of an application, with payloads and another vector."""
    m = qdrant.models
    client = qdrant.QdrantClient(path=str(folder))
    params = m.VectorParams(size=64, distance=m.Distance[distance])
    other = m.VectorParams(size=2, distance=m.Distance.DOT)
    client.create_collection("docs", {"text": params, "place": other} if named else params)
    vectors = (VECTORS[0] * np.float32(length)).tolist()
    rows = [{"text": v, "place": [float(i), 1.0]} if named else v for i, v in enumerate(vectors)]
    points = [m.PointStruct(id=ids[i], vector=row, payload={"title": f"Title {i}"}) for i, row in enumerate(rows)]
    client.upsert("docs", points)
    client.close()


@pytest.mark.parametrize(("ids", "named"), [(list(range(N)), True), (UUIDS, False)], ids=["numbers", "uuids-unnamed"])
def test_a_change_of_a_collection_that_exists(folder: Path, ids: list[Any], named: bool) -> None:
    fill(folder, ids, named=named)
    place = str(folder)
    with pytest.raises(GenerationError, match="adopt"):
        QdrantIndex.open(place, "docs")
    index = QdrantIndex.adopt(place, "docs", PIXELS, vector="text" if named else None)

    def again(index: Any) -> Any:
        index.close()
        return QdrantIndex.open(place, "docs")

    change_and_back(index, ids, VECTORS, QUERIES, again).close()
    client = qdrant.QdrantClient(path=place)
    points, _ = client.scroll("docs", limit=N + 1, with_vectors=True)
    assert {p.id: p.payload for p in points} == {name: {"title": f"Title {i}"} for i, name in enumerate(ids)}
    assert set(points[0].vector) == ({"place", "text_g1"} if named else {"vector_g1"})
    client.close()


@pytest.mark.parametrize("name", [name for name in CHECKS if name != "readers"])
def test_contract(folder: Path, name: str) -> None:
    """All but readers in other processes, which local mode does not let in."""
    make = maker(lambda: f"qdrant:{tempfile.mkdtemp(dir=folder)}#made")
    CHECKS[name](Stores(make=make, ids="int", processes=False, whole=False, rows=160))


@pytest.mark.parametrize("distance", ["DOT", "EUCLID"])
def test_other_distances_of_unit_vectors(folder: Path, distance: str) -> None:
    fill(folder, list(range(N)), distance=distance)
    with QdrantIndex.adopt(str(folder), "docs", PIXELS, vector="text") as index:
        index.begin(PARTS)
        index.move(list(range(40)), VECTORS[1][:40], 1)
        expect(index, list(range(N)), VECTORS, QUERIES, [1] * 40 + [0] * (N - 40))


def test_collections_that_cannot_be_adopted(folder: Path) -> None:
    fill(folder / "a", list(range(N)))
    for options, error, words in (
        ({"vector": None}, StoreError, "Say which"),
        ({"vector": "none"}, StoreError, "Say which"),
        ({"generation": Generation(0, "e", 65)}, DataError, "65"),
        ({"name": "elsewhere"}, StoreError, "not found"),
    ):
        given = {"name": "docs", "generation": PIXELS, "vector": "text", **options}
        with pytest.raises(error, match=words):
            QdrantIndex.adopt(str(folder / "a"), **given)
    fill(folder / "b", list(range(N)), distance="MANHATTAN")
    with pytest.raises(StoreError, match="Manhattan"):
        QdrantIndex.adopt(str(folder / "b"), "docs", PIXELS, vector="text")
    fill(folder / "c", list(range(N)), distance="DOT", length=2)
    with pytest.raises(DataError, match="not of length 1"):
        QdrantIndex.adopt(str(folder / "c"), "docs", PIXELS, vector="text")
    fill(folder / "d", list(range(N)), length=0)
    with pytest.raises(DataError, match="zero"):
        QdrantIndex.adopt(str(folder / "d"), "docs", PIXELS, vector="text")
    with pytest.raises(StoreError, match=r"meta\.json"):
        QdrantIndex.open(str(folder / "nowhere"), "docs")
    assert not (folder / "nowhere").exists()
    for name in ("a/b", "..", "x" * 300):
        with pytest.raises(StoreError):
            open_index(f"qdrant:{folder / 'e'}#{name}", create=PIXELS)
    adopt_index(f"qdrant:{folder / 'a'}#docs", PIXELS, vector="text").close()
    adopt_index(f"qdrant:{folder / 'a'}#docs", PIXELS).close()
    with pytest.raises(GenerationError, match="stamped already"):
        QdrantIndex.adopt(str(folder / "a"), "docs", Generation(0, "another", 64))
    with pytest.raises(StoreError, match="failed"):
        QdrantIndex.open("http://127.0.0.1:9", "docs")


def test_ids_that_are_neither_numbers_nor_uuids(folder: Path) -> None:
    with QdrantIndex.open(str(folder), "made", create=PIXELS) as index:
        for name in ("row 1", -1, True, 2**63):
            with pytest.raises(DataError):
                index.add([name], VECTORS[0][:1], 0)
        spelled = [UUIDS[1].upper(), "{" + UUIDS[2] + "}", 7]
        index.add(spelled, VECTORS[0][:3], 0)
        with pytest.raises(DataError, match="exist already"):
            index.add([UUIDS[1]], VECTORS[0][:1], 0)
        vectors, _ = index.fetch(spelled)
        np.testing.assert_allclose(vectors, VECTORS[0][:3], atol=1e-6)
        assert index.ids(0) == [7, UUIDS[1], UUIDS[2]]


def test_a_folder_in_use(folder: Path) -> None:
    fill(folder, list(range(N)))
    with QdrantIndex.adopt(str(folder), "docs", PIXELS, vector="text"):
        work = f"from instar.retrieval.opening import open_index; open_index({f'qdrant:{folder}#docs'!r}, readonly=True)"
        done = subprocess.run([sys.executable, "-c", work], capture_output=True, text=True, check=False)
        assert "StoreError" in done.stderr
        assert "one process at a time" in done.stderr
    with QdrantIndex.open(str(folder), "docs", readonly=True) as index, pytest.raises(StoreError, match="read only"):
        index.rollback()


def test_points_of_the_application(folder: Path) -> None:
    """Points without a vector are no rows; `add` gives them one and leaves their payload alone."""
    fill(folder, list(range(N)))
    m = qdrant.models
    client = qdrant.QdrantClient(path=str(folder))
    client.delete_vectors("docs", ["text"], [5])
    client.close()
    where = [0] * N
    where[5] = -1
    with QdrantIndex.adopt(str(folder), "docs", PIXELS, vector="text") as index:
        expect(index, list(range(N)), VECTORS, QUERIES, where)
        index.begin(PARTS)
        with pytest.raises(DataError, match=" 5 "):
            index.move([4, 5], VECTORS[1][4:6], 1)
        index.add([5], VECTORS[1][5:6], 1)
        where[5] = 1
        expect(index, list(range(N)), VECTORS, QUERIES, where)
        with pytest.raises(GenerationError, match="only"):
            index.rollback()
        index.remove([5])
        index.rollback()
        where[5] = -1
        expect(index, list(range(N)), VECTORS, QUERIES, where)
    client = qdrant.QdrantClient(path=str(folder))
    assert client.count("docs", count_filter=m.Filter(must=[m.HasIdCondition(has_id=[4])])).count == 1
    client.close()


def test_a_change_that_ended_between_its_steps(folder: Path) -> None:
    """The stamps decide: vectors that no stamp names are deleted by the next change, and never mixed with others."""
    ids = list(range(N))
    fill(folder, ids)
    with QdrantIndex.adopt(str(folder), "docs", PIXELS, vector="text") as index:
        index.begin(PARTS)
        index.move(ids, VECTORS[1], 1)
    client = qdrant.QdrantClient(path=str(folder))
    stamp = json.loads(client.get_collection("docs").config.metadata["instar"])
    # A rollback whose process was killed after its first step.
    stamp = {"generations": stamp["generations"][:1], "left": ["text_g1"]}
    client.update_collection("docs", metadata={"instar": json.dumps(stamp)})
    client.close()
    with QdrantIndex.open(str(folder), "docs") as index:
        expect(index, ids, VECTORS, QUERIES, [0] * N)
        index.begin(OTHERS)
        expect(index, ids, VECTORS, QUERIES, [0] * N)
        index.move(ids[:9], VECTORS[1][:9], 1)
        expect(index, ids, VECTORS, QUERIES, [1] * 9 + [0] * (N - 9))
    client = qdrant.QdrantClient(path=str(folder))
    client.update_collection("docs", metadata={"instar": "no stamp"})
    client.close()
    with pytest.raises(StoreError, match="no stamp"):
        QdrantIndex.open(str(folder), "docs")


@pytest.mark.parametrize("kind", ["dense", "multi", "sparse"])
def test_a_vector_of_the_application_where_the_new_ones_would_stand(folder: Path, kind: str) -> None:
    m = qdrant.models
    several = m.MultiVectorConfig(comparator=m.MultiVectorComparator.MAX_SIM) if kind == "multi" else None
    other = {"text_g1": m.VectorParams(size=2, distance=m.Distance.DOT, multivector_config=several)} if kind != "sparse" else {}
    held = {"dense": [1.0, 0.0], "multi": [[1.0, 0.0], [0.0, 1.0]], "sparse": m.SparseVector(indices=[1], values=[1.0])}[kind]
    with closing(qdrant.QdrantClient(path=str(folder))) as client:
        client.create_collection(
            "docs",
            {"text": m.VectorParams(size=64, distance=m.Distance.COSINE), **other},
            {"text_g1": m.SparseVectorParams()} if kind == "sparse" else None,
        )
        client.upsert("docs", [m.PointStruct(id=1, vector={"text": VECTORS[0][0].tolist(), "text_g1": held})])
    with adopt_index(f"qdrant:{folder}#docs", PIXELS, vector="text") as index:
        for _ in range(2):
            with pytest.raises(StoreError, match="already, where the new ones would stand"):
                index.begin(PARTS)
        index.finish()
    with closing(qdrant.QdrantClient(path=str(folder))) as client:
        assert set(client.retrieve("docs", [1], with_vectors=True)[0].vector) == {"text", "text_g1"}


def test_a_folder_that_goes_away(folder: Path) -> None:
    """What can no longer be written is refused in words; what had returned is there when the folder is back."""
    ids = list(range(N))
    fill(folder / "a", ids)
    index = QdrantIndex.adopt(str(folder / "a"), "docs", PIXELS, vector="text")
    index.begin(PARTS)
    index.move(ids[:20], VECTORS[1][:20], 1)
    shutil.move(folder / "a", folder / "b")
    with pytest.raises(StoreError):
        index.rollback()
    index.close()
    with QdrantIndex.open(str(folder / "b"), "docs") as index:
        expect(index, ids, VECTORS, QUERIES, [1] * 20 + [0] * (N - 20))


def test_vectors_of_any_length_compare_by_angle(folder: Path) -> None:
    fill(folder, list(range(N)), length=3)
    with QdrantIndex.adopt(str(folder), "docs", PIXELS, vector="text") as index:
        expect(index, list(range(N)), {0: unit(VECTORS[0])}, QUERIES, [0] * N)


def test_a_vector_that_another_program_deleted(folder: Path) -> None:
    """It is told, and a rollback is the way out."""
    ids = list(range(N))
    fill(folder, ids)
    with QdrantIndex.adopt(str(folder), "docs", PIXELS, vector="text") as index:
        index.begin(PARTS)
        index.move(ids[:9], VECTORS[1][:9], 1)
    client = qdrant.QdrantClient(path=str(folder))
    client.delete_vector_name("docs", "text_g1")
    client.close()
    with QdrantIndex.open(str(folder), "docs") as index:
        with pytest.raises(StoreError, match="has no vector 'text_g1' any more"):
            index.search(QUERIES, 3)
        with pytest.raises(StoreError):
            index.move(ids[:9], VECTORS[1][:9], 1)
        index.rollback()
        expect(index, ids, VECTORS, QUERIES, [0] * N)


def test_a_damaged_folder(folder: Path) -> None:
    fill(folder, list(range(N)))
    QdrantIndex.adopt(str(folder), "docs", PIXELS, vector="text").close()
    with closing(sqlite3.connect(folder / "collection" / "docs" / "storage.sqlite")) as base, base:
        base.execute("UPDATE points SET point = x'00' WHERE rowid = 3")
    with pytest.raises(StoreError, match="cannot be read by Qdrant's local mode"):
        QdrantIndex.open(str(folder), "docs")
    (folder / "meta.json").write_text("{")
    with pytest.raises(StoreError, match="cannot be read by Qdrant's local mode"):
        QdrantIndex.open(str(folder), "docs")
