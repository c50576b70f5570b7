"""Qdrant in local mode: the user's own collection, its payloads and other vectors, interruptions, the lock on its folder."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from digits import PARTS, PIXELS, encoded, expect

from instar.errors import GenerationError

qdrant = pytest.importorskip("qdrant_client")
from instar.retrieval.qdrant_store import QdrantIndex  # noqa: E402

N = 200
VECTORS, QUERIES = encoded(N)
UUIDS = [str(uuid.UUID(int=i * 7919)) for i in range(N)]


def fill(folder: Path, ids: list[Any], *, named: bool = True, distance: str = "COSINE") -> None:
    """The collection of an application, with payloads and another vector."""
    m = qdrant.models
    client = qdrant.QdrantClient(path=str(folder))
    params = m.VectorParams(size=64, distance=m.Distance[distance])
    other = m.VectorParams(size=2, distance=m.Distance.DOT)
    client.create_collection("docs", {"text": params, "place": other} if named else params)
    rows = [{"text": v.tolist(), "place": [float(i), 1.0]} if named else v.tolist() for i, v in enumerate(VECTORS[0])]
    points = [m.PointStruct(id=ids[i], vector=row, payload={"title": f"Title {i}"}) for i, row in enumerate(rows)]
    client.upsert("docs", points)
    client.close()


@pytest.fixture
def opened() -> Iterator[Any]:
    """Opens an index after the one before was closed: a folder takes one at a time."""
    held: list[QdrantIndex] = []

    def use(index: Any) -> QdrantIndex:
        held.append(index())
        return held[-1]

    yield use
    for index in held:
        index.close()


@pytest.mark.parametrize(("ids", "named"), [(list(range(N)), True), (UUIDS, False)], ids=["numbers", "uuids-unnamed"])
def test_a_change_of_a_collection_that_exists(tmp_path: Path, ids: list[Any], named: bool) -> None:
    fill(tmp_path, ids, named=named)
    place = str(tmp_path)
    with pytest.raises(GenerationError, match="adopt"):
        QdrantIndex.open(place, "docs")
    index = QdrantIndex.adopt(place, "docs", PIXELS, vector="text" if named else None)
    where = [0] * N
    expect(index, ids, VECTORS, QUERIES, where)
    order = np.random.default_rng(0).permutation(N)
    for moved in (0, 70, N):
        index.begin(PARTS)
        part = order[:moved]
        index.move([ids[i] for i in part], VECTORS[1][part], 1)
        for i in part:
            where[i] = 1
        expect(index, ids, VECTORS, QUERIES, where)
        index.close()
        index = QdrantIndex.open(place, "docs")
        expect(index, ids, VECTORS, QUERIES, where)
        if moved == 70:
            index.rollback()
            where = [0] * N
            expect(index, ids, VECTORS, QUERIES, where)
            with pytest.raises(GenerationError, match="no older"):
                index.rollback()
    index.finish()
    index.finish()
    assert [g.number for g in index.generations()] == [1]
    expect(index, ids, VECTORS, QUERIES, where)
    index.close()
    client = qdrant.QdrantClient(path=place)
    points, _ = client.scroll("docs", limit=N + 1, with_vectors=True)
    assert {p.id: p.payload for p in points} == {name: {"title": f"Title {i}"} for i, name in enumerate(ids)}
    assert set(points[0].vector) == ({"place", "text_g1"} if named else {"vector_g1"})
    client.close()
