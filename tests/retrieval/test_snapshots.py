"""Snapshots: opening does not build a graph again, finds the same, and does without where they are damaged, foreign or old."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
import usearch.index
from digits import unit

from instar.interfaces import Floats, Generation
from instar.retrieval import manifest, snapshots
from instar.retrieval.beside import SingleFileIndex
from instar.retrieval.faiss_index import FaissIndex
from instar.retrieval.faiss_spaces import FaissSpace
from instar.retrieval.journal import Journal
from instar.retrieval.usearch_index import UsearchIndex, UsearchSpace

OLD, NEW = Generation(0, "old", 8), Generation(1, "new", 12)
ROWS = 900


def vectors(dim: int) -> Floats:
    return unit(np.random.default_rng(dim).standard_normal((ROWS, dim)))


def graph(folder: Path) -> SingleFileIndex:
    index = faiss.index_factory(OLD.dim, "HNSW8", faiss.METRIC_INNER_PRODUCT)
    index.add(vectors(OLD.dim))
    faiss.write_index(index, str(folder / "own.faiss"))
    return FaissIndex.adopt(str(folder / "own.faiss"), generation=OLD)


def cells(folder: Path) -> SingleFileIndex:
    index = faiss.index_factory(OLD.dim, "IVF4,Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(vectors(OLD.dim))
    index.add(vectors(OLD.dim))
    index.nprobe = 4
    faiss.write_index(index, str(folder / "own.faiss"))
    return FaissIndex.adopt(str(folder / "own.faiss"), generation=OLD)


def usearch_graph(folder: Path) -> SingleFileIndex:
    index = usearch.index.Index(ndim=OLD.dim, metric="cos", dtype="f32")
    index.add(np.arange(ROWS), vectors(OLD.dim))
    index.save(str(folder / "own.usearch"))
    return UsearchIndex.adopt(str(folder / "own.usearch"), generation=OLD)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "_LEAST", 200)


def changed(index: SingleFileIndex) -> None:
    """Three quarters have moved; some of them twice, some are gone, some are new: before the last snapshot and after it."""
    new = vectors(NEW.dim)
    index.begin(NEW)
    for at in range(0, 675, 45):
        index.move(list(range(at, at + 45)), new[at : at + 45], 1)
        index.move([at, at + 1], new[[at + 1, at]], 1)
        index.move([at, at + 1], new[[at, at + 1]], 1)
        index.remove([at + 2])
        index.add([1000 + at], new[at + 2 : at + 3], 1)


def built(monkeypatch: pytest.MonkeyPatch, kind: type, again: Callable[[], SingleFileIndex]) -> tuple[SingleFileIndex, int]:
    """An index that is opened, and how many vectors were put into graphs or cells for that."""
    count = 0
    with monkeypatch.context() as patch:
        for space in (FaissSpace, UsearchSpace):

            def counting(self: Any, values: Floats, keys: Any, real: Any = space._insert) -> None:
                nonlocal count
                count += len(values)
                real(self, values, keys)

            patch.setattr(space, "_insert", counting)
        opened = again()
    return opened, count


@pytest.mark.parametrize("make", [graph, cells, usearch_graph])
def test_opening_with_a_snapshot(
    make: Callable[[Path], SingleFileIndex], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    index = make(tmp_path)
    changed(index)
    new, queries = vectors(NEW.dim), {0: vectors(OLD.dim)[:40], 1: vectors(NEW.dim)[:40]}
    expected, counts = index.search(queries, 30), index.counts()
    last = json.loads((index.folder / snapshots.NAME).read_text())
    assert 200 <= last["slots"] <= 15 * 50
    assert [path.name for path in index.folder.glob("snapshot-*")] == [last["file"]["name"]]

    def check(stage: str, least: int, most: int) -> SingleFileIndex:
        again, count = built(monkeypatch, type(index), lambda: type(index)(index.place, readonly=True))
        assert least <= count <= most, stage
        assert again.counts() == counts
        found = again.search(queries, 30)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
        moved = [i for i in range(675) if i % 45 > 2]
        assert np.array_equal(np.stack(again.fetch(moved)[0]), new[moved])
        return again

    check("with a snapshot", 0, 15 * 50 - last["slots"])
    whole = (index.folder / last["file"]["name"]).read_bytes()
    for wrong in (whole[:-7], b"", bytes(len(whole))):
        (index.folder / last["file"]["name"]).write_bytes(wrong)
        check("with a damaged one", 15 * 50, 15 * 50)
    # Damaged in a way that its print does not know of: what cannot be read is passed over too.
    path = index.folder / last["file"]["name"]
    path.write_bytes(whole[:100])
    (index.folder / snapshots.NAME).write_text(json.dumps({**last, "file": manifest.print_of(path)}))
    check("with one that cannot be read", 15 * 50, 15 * 50)
    path.write_bytes(whole)
    (index.folder / snapshots.NAME).write_text(json.dumps({**last, "index": "another"}))
    check("with that of another index", 15 * 50, 15 * 50)
    (index.folder / snapshots.NAME).write_text(json.dumps(last))
    check("whole again", 0, 15 * 50 - last["slots"])


def test_a_snapshot_of_what_was_rolled_back_is_not_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    index = graph(tmp_path)
    index.begin(NEW)
    index.move(list(range(300)), vectors(NEW.dim)[:300], 1)
    kept = tmp_path / "kept"
    shutil.copytree(index.folder, kept)
    index.rollback()
    assert not list(index.folder.glob("snapshot*"))
    for path in kept.glob("snapshot*"):  # as if the writer had been killed before it could delete them
        shutil.copy(path, index.folder)
    index.begin(NEW)
    index.move([0], vectors(NEW.dim)[5:6], 1)
    index.close()
    again, count = built(monkeypatch, FaissIndex, lambda: FaissIndex(index.place))
    assert count == 1
    assert np.array_equal(again.fetch([0])[0][0], vectors(NEW.dim)[5])
    again.remove([1])
    assert not list(index.folder.glob("snapshot*"))
    again.move([i for i in range(ROWS) if i != 1], np.delete(vectors(NEW.dim), 1, 0), 1)
    assert len(list(index.folder.glob("snapshot*"))) == 2
    again.finish()
    assert not list(index.folder.glob("snapshot*"))
    assert again.counts() == {1: ROWS - 1}


@pytest.mark.parametrize("make", [graph, cells, usearch_graph])
def test_a_snapshot_that_is_made_while_a_reader_loads_is_not_taken(
    make: Callable[[Path], SingleFileIndex], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    index, new = make(tmp_path), vectors(NEW.dim)
    reader = type(index)(index.place, readonly=True)
    index.remove([ROWS - 1])
    index.finish()  # so that the reader begins again
    index.begin(NEW)
    index.move(list(range(300)), new[:300], 1)
    listed = Journal.taken_back

    def meanwhile(self: Journal, numbers: range) -> set[int]:
        found = listed(self, numbers)
        if self is reader._journal and index.counts()[1] == 300:
            index.move(list(range(300, 800)), new[300:800], 1)
        return found

    monkeypatch.setattr(Journal, "taken_back", meanwhile)
    hits = reader.nearest(1, new[:400], 5)
    for row, (names, generations) in enumerate(zip(hits.ids, hits.generations, strict=True)):
        assert set(generations) == {1}
        assert set(names) <= set(range(300)), row
    assert np.array_equal(reader.nearest(1, new[300:800], 1).ids[:, 0], np.arange(300, 800))
