"""A disk that fills up: an error in words, every row as it was, nothing left that takes room, and on it goes when there is room.

The system's own limit on the size of a file stands in for the end of a disk: a write beyond it is cut short, then refused.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from digits import PARTS, PIXELS, encoded, expect
from store_contract import quick_folder

from instar.errors import StoreError
from instar.interfaces import Floats, Index
from instar.retrieval.backfill import Backfill
from instar.retrieval.exact import ExactIndex
from instar.retrieval.opening import adopt_index, open_index

N = 150
IDS = list(range(N))
VECTORS, QUERIES = encoded(N)
FILES = ("exact", "faiss", "faiss graph", "usearch")
DATABASES = ("lancedb", "qdrant")


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_folder() as found:
        (found / "disk").mkdir()
        yield found / "disk"


@contextmanager
def room(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def address(kind: str, folder: Path) -> str:
    name = kind.partition(" ")[0]
    if kind in DATABASES:
        pytest.importorskip({"qdrant": "qdrant_client"}.get(kind, kind))
        return f"{name}:{folder / name}#rows"
    return f"{name}:{folder / f'rows.{name}'}"


def made(kind: str, folder: Path) -> Index:
    url = address(kind, folder)
    if kind == "faiss graph":
        graph = faiss.IndexHNSWFlat(PIXELS.dim, 16, faiss.METRIC_INNER_PRODUCT)
        graph.add(VECTORS[0])
        faiss.write_index(graph, url.removeprefix("faiss:"))
        return adopt_index(url, PIXELS)
    index = open_index(url, create=PIXELS)
    index.add(IDS, VECTORS[0], 0)
    return index


def encode(texts: Sequence[str]) -> Floats:
    return VECTORS[1][[int(text) if text.isdigit() else 0 for text in texts]]


def backfill(index: Index) -> Any:
    return Backfill(index, PARTS, encode, {str(i): str(i) for i in IDS}, batch=30)


def whole(index: Index) -> int:
    """Every row is there, with its vector, and found by brute force; returns how many have moved."""
    where = index.fetch(IDS)[1]
    expect(index, IDS, VECTORS, QUERIES, where)
    return where.count(1)


@pytest.mark.parametrize("kind", [*FILES, *DATABASES])
def test_a_backfill_goes_on_when_there_is_room(kind: str, folder: Path) -> None:
    index = made(kind, folder)
    if kind == "qdrant":
        index.begin(PARTS)  # whose table of points is one file that is large already
    with room(2000), pytest.raises(StoreError):
        backfill(index).run()
    with room(300), pytest.raises(StoreError):
        index.add([N, N + 1], VECTORS[0][:2], 0)
    assert whole(index) < N
    outcome = backfill(index).run()
    assert (outcome.left, outcome.clean) == (0, True)
    assert whole(index) == N
    with room(0), pytest.raises(StoreError):
        index.rollback()
    assert whole(index) == N
    index.close()
    with open_index(address(kind, folder)) as again:
        assert whole(again) == N
        again.rollback()
        assert whole(again) == 0


@pytest.mark.parametrize("kind", FILES)
def test_the_end_of_a_change_fits_or_has_not_happened(kind: str, folder: Path) -> None:
    """At every size of a disk: FAISS and usearch themselves do not notice when the last piece of a file was not written."""
    index = made(kind, folder)
    backfill(index).run()
    shutil.copytree(folder, folder.parent / "finished")
    with open_index(address(kind, folder.parent / "finished")) as other:
        other.finish()
    size = max(path.stat().st_size for path in (folder.parent / "finished").rglob("*") if path.is_file())
    before = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    refused = 0
    for most in (0, 100, size // 2, *range(size - 3003, size + 400, 333)):
        try:
            with room(most):
                index.finish()
        except StoreError:
            refused += 1
            assert whole(index) == N
            assert {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()} == before
            continue
        break
    assert refused == 13
    assert [g.number for g in index.generations()] == [1]
    index.close()
    with open_index(address(kind, folder)) as again:
        assert whole(again) == N


@pytest.mark.parametrize("kind", [*FILES, *DATABASES])
def test_an_index_that_could_not_be_made_is_made_later(kind: str, folder: Path) -> None:
    url, refused = address(kind, folder), 0
    for most in (0, 60, 90, 200, 400):
        try:
            with room(most):
                open_index(url, create=PIXELS).close()
        except StoreError:
            refused += 1
            continue
        break
    assert refused > 0
    with open_index(url, create=PIXELS) as index:
        index.add(IDS, VECTORS[0], 0)
        assert whole(index) == 0


def test_vectors_that_could_not_be_adopted_are_adopted_later(folder: Path) -> None:
    np.save(folder / "vectors.npy", VECTORS[0])
    (folder / "base-of-mine.npy").write_bytes(b"not Instar's")
    for most in (0, 200, 450):
        with room(most), pytest.raises(StoreError, match="could be written"):
            adopt_index(f"exact:{folder}", PIXELS)
        assert {path.name for path in folder.iterdir()} == {"vectors.npy", "base-of-mine.npy", "lock"}
    with adopt_index(f"exact:{folder}", PIXELS) as index:
        assert whole(index) == 0
        backfill(index).run()
        index.finish()
    assert (folder / "base-of-mine.npy").exists()


def test_the_command_line_says_so(folder: Path) -> None:
    texts = ["a lazy dog", "the quick brown fox", "jumps over the fence", "and runs into the wood"] * 10
    (folder / "texts.jsonl").write_text("".join(json.dumps({"id": str(i), "text": t}) + "\n" for i, t in enumerate(texts)))
    vectors = np.ascontiguousarray(VECTORS[0][: len(texts)])
    ExactIndex.adopt(str(folder / "s"), generation=PIXELS, vectors=vectors, ids=[str(i) for i in range(len(texts))]).close()
    from instar.encoders.lsa import Lsa

    Lsa.fit(texts, {"dims": 4, "min_count": 1}).save(folder / "new")
    command = [sys.executable, "-m", "instar", "encoder", "backfill", f"exact:{folder / 's'}", f"lsa:{folder / 'new'}"]
    done = subprocess.run(
        [*command, "--data", str(folder / "texts.jsonl")],
        capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "200"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY)),
    )  # fmt: skip
    assert done.returncode == 3, done
    assert "could not be written" in done.stderr
    assert "Traceback" not in done.stderr
    with open_index(f"exact:{folder / 's'}") as index:
        assert index.counts() == {0: len(texts)}
