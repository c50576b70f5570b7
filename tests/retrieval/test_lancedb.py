"""LanceDB: the user's own table, kills, readers beside a writer, changes that exclude one another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from digits import PARTS, PIXELS, encoded, expect

from instar.errors import GenerationError
from instar.interfaces import Floats

lancedb = pytest.importorskip("lancedb")
pa = pytest.importorskip("pyarrow")
from instar.retrieval.lancedb_store import LanceIndex  # noqa: E402

N = 300
VECTORS, QUERIES = encoded(N)


def fill(folder: Path, ids: list[Any], vectors: Floats = VECTORS[0], name: str = "docs") -> Any:
    """The table of an application, with columns of its own."""
    flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    table = pa.table({"title": [f"Title {i}" for i in range(len(ids))], "doc id": ids, "Vec tor": flat})
    return lancedb.connect(folder).create_table(name, table)


@pytest.mark.parametrize("ids", [list(range(N)), [f"row '{i}' % é" for i in range(N)]], ids=["integers", "texts"])
def test_a_change_of_a_table_that_exists(tmp_path: Path, ids: list[Any]) -> None:
    fill(tmp_path, ids)
    with pytest.raises(GenerationError, match="adopt"):
        LanceIndex.open(str(tmp_path), "docs")
    index = LanceIndex.adopt(str(tmp_path), "docs", PIXELS, id_column="doc id")
    beside = LanceIndex.open(str(tmp_path), "docs", readonly=True)
    where = [0] * N
    expect(index, ids, VECTORS, QUERIES, where)
    order = np.random.default_rng(0).permutation(N)
    for moved in (0, 100, 300):
        index.begin(PARTS)
        part = order[:moved]
        index.move([ids[i] for i in part], VECTORS[1][part], 1)
        for i in part:
            where[i] = 1
        expect(index, ids, VECTORS, QUERIES, where)
        expect(beside, ids, VECTORS, QUERIES, where)
        if moved == 100:
            index.rollback()
            where = [0] * N
            expect(beside, ids, VECTORS, QUERIES, where)
            with pytest.raises(GenerationError, match="no older"):
                index.rollback()
    index.finish()
    index.finish()
    assert [g.number for g in index.generations()] == [1]
    expect(beside, ids, VECTORS, QUERIES, where)
    kept = lancedb.connect(tmp_path).open_table("docs").to_arrow()
    assert kept.column_names == ["title", "doc id", "Vec tor_g1"]
    assert dict(zip(kept["doc id"].to_pylist(), kept["title"].to_pylist(), strict=True)) == {
        name: f"Title {i}" for i, name in enumerate(ids)
    }
