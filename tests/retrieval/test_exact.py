"""Exact search: equal to brute force in any block size and after any removal; a user's own files; pages shared, memory once."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instar.errors import DataError, GenerationError, ShapeError, StoreError
from instar.interfaces import Floats, Generation
from instar.retrieval import spaces
from instar.retrieval.exact import ExactIndex
from instar.retrieval.opening import adopt_index, open_index
from instar.retrieval.spaces import FlatSpace

OLD = Generation(0, "old", 8)


def units(rows: int, dim: int, seed: int = 0) -> Floats:
    found = np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def test_an_id_may_hold_any_other_end_of_a_line(tmp_path: Path) -> None:
    names = ["a", "b\x85c", "d\u2028e", "f"]
    (tmp_path / "ids.txt").write_text("\n".join(names) + "\n", "utf-8")
    with ExactIndex.adopt(str(tmp_path / "index"), generation=OLD, vectors=units(4, 8), ids=tmp_path / "ids.txt") as index:
        assert list(index.ids(0)) == names


@settings(max_examples=60, deadline=None)
@given(
    base=st.integers(0, 40),
    steps=st.lists(st.tuples(st.integers(0, 30), st.floats(0, 1)), max_size=6),
    k=st.integers(1, 50),
    block=st.integers(1, 20),
    seed=st.integers(0, 99),
)
def test_flat_space_is_brute_force_whatever_was_added_and_dropped(
    base: int, steps: list[tuple[int, float]], k: int, block: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    held = np.round(units(base, 4, seed) * 4) / 4  # with many equals
    space, kept = FlatSpace(4, held.copy()), list(range(base))
    for added, dropped in steps:
        more = np.round(units(added, 4, seed + 1) * 4) / 4
        assert space.add(more) == len(held)
        kept += range(len(held), len(held) + added)
        held = np.concatenate([held, more])
        gone = generator.permutation(kept)[: int(dropped * len(kept))]
        space.drop(gone.astype(np.int64))
        kept = [slot for slot in kept if slot not in set(gone.tolist())]
    assert len(space) == len(kept)
    assert np.array_equal(space.vectors(np.array(kept, np.int64)), held[kept])
    queries = units(5, 4, seed + 2)
    among = generator.random(len(held)) < 0.5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spaces, "_ROWS", block)
        patch.setattr(spaces, "_SCORES", 3 * block)
        for allowed in (None, among):
            rows = kept if allowed is None else [slot for slot in kept if allowed[slot]]
            scores, slots = space.search(queries, k, allowed)
            true = np.full((5, k), -np.inf)
            best = -np.sort(-(queries @ held[rows].T), axis=1)[:, :k]
            true[:, : best.shape[1]] = best
            np.testing.assert_allclose(scores, true, atol=1e-6)
            for query in range(5):
                found = slots[query][slots[query] >= 0]
                assert len(found) == min(k, len(rows)) == len(set(found.tolist()))
                assert set(found.tolist()) <= set(rows)
                np.testing.assert_allclose(held[found] @ queries[query], scores[query, : len(found)], atol=1e-6)


def test_a_folder_of_the_users_own(tmp_path: Path) -> None:
    vectors = units(50, 8)
    np.save(tmp_path / "vectors.npy", vectors)
    (tmp_path / "ids.json").write_text(json.dumps([f"d{i}" for i in range(50)]))
    before = (tmp_path / "vectors.npy").read_bytes()
    with adopt_index(f"exact:{tmp_path}", OLD) as index:
        assert index.ids(0, limit=3) == ["d0", "d1", "d2"]
        index.begin(Generation(1, "new", 12))
        index.move(index.ids(0)[:30], units(30, 12, 1), 1)
        index.search({0: vectors[:4], 1: units(4, 12)}, 5)
    assert (tmp_path / "vectors.npy").read_bytes() == before  # though rows of its map were moved about
    with pytest.raises(StoreError, match="already"):
        adopt_index(f"exact:{tmp_path}", OLD)
    np.save(tmp_path / "vectors.npy", units(50, 8, 5))
    with pytest.raises(StoreError, match="another program has written it"):
        open_index(f"exact:{tmp_path}")


def test_vectors_from_elsewhere_are_copied_and_left(tmp_path: Path) -> None:
    np.save(tmp_path / "mine.npy", units(5, 8))
    with ExactIndex.adopt(str(tmp_path / "index"), generation=OLD, vectors=tmp_path / "mine.npy") as index:
        assert index.ids(0) == [0, 1, 2, 3, 4]
    (tmp_path / "mine.npy").unlink()
    with open_index(f"exact:{tmp_path / 'index'}", readonly=True) as index:
        assert np.array_equal(np.stack(index.fetch([0, 3])[0]), units(5, 8)[[0, 3]])


@pytest.mark.parametrize(
    ("vectors", "ids", "error", "words"),
    [
        (units(3, 8).astype(np.float64), None, ShapeError, "float64"),
        (units(3, 7), None, ShapeError, r"\[N, 8\]"),
        (units(3, 8) * 2, None, DataError, "not unit vectors: length 2"),
        (np.zeros((3, 8), np.float32), None, DataError, "zero"),
        (units(3, 8), ["a", "b"], DataError, "2 ids for 3 vectors"),
        (units(3, 8), ["a", "b", "a"], DataError, "twice"),
        (units(3, 8), ["a", "b", None], DataError, "integers or texts"),
    ],
)
def test_what_cannot_be_adopted(vectors: Floats, ids: object, error: type[Exception], words: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=words):
        ExactIndex.adopt(str(tmp_path / "index"), generation=OLD, vectors=vectors, ids=ids)  # type: ignore[arg-type]
    assert not (tmp_path / "index").exists()


def test_damaged_bases(tmp_path: Path) -> None:
    with ExactIndex.adopt(str(tmp_path), generation=OLD, vectors=units(50, 8)):
        pass
    for name in ("base-0000000.npy", "base-0000000.ids.json"):
        whole = (tmp_path / name).read_bytes()
        for wrong in (whole[:-1], b"", whole[:200] + b"?" + whole[201:]):
            (tmp_path / name).write_bytes(wrong)
            with pytest.raises(StoreError, match=name):
                ExactIndex(tmp_path)
        (tmp_path / name).unlink()
        with pytest.raises(StoreError, match=name):
            ExactIndex(tmp_path)
        (tmp_path / name).write_bytes(whole)
    ExactIndex(tmp_path).close()


def full(_: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("finished", [True, False])
def test_what_is_left_of_an_index_without_its_manifest_is_not_written_over(finished: bool, tmp_path: Path) -> None:
    with ExactIndex.adopt(str(tmp_path), generation=OLD, vectors=units(5, 8)) as index:
        if finished:
            index.remove([4])
            index.finish()
    (tmp_path / "manifest.json").unlink()
    left = {path.name: path.read_bytes() for path in tmp_path.glob("base-*")}
    assert left
    with pytest.raises((StoreError, GenerationError), match=r"gone|without a stamp"):
        open_index(f"exact:{tmp_path}", create=OLD)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match=r"gone|No space"):
            adopt_index(f"exact:{tmp_path}", OLD, vectors=str(next(tmp_path.glob("base-*.npy"))))
    assert {path.name: path.read_bytes() for path in tmp_path.glob("base-*")} == left
    for name, content in left.items():
        (tmp_path / name).rename(tmp_path / f"kept-{name}")
        assert (tmp_path / f"kept-{name}").read_bytes() == content
    kept = {suffix: str(next(tmp_path.glob(f"kept-*.{suffix}"))) for suffix in ("npy", "ids.json")}
    with adopt_index(f"exact:{tmp_path}", OLD, vectors=kept["npy"], ids=kept["ids.json"]) as index:
        assert index.ids(0) == list(range(4 if finished else 5))
        index.begin(Generation(1, "new", 12))
        index.move(index.ids(0), units(len(index.ids(0)), 12), 1)
        index.finish()
    assert Path(kept["npy"]).exists()


def test_addresses_and_stamps(tmp_path: Path) -> None:
    with open_index(f"exact:{tmp_path / 'a'}", create=OLD) as index:
        index.add(["x"], units(1, 8), 0)
    with open_index(f"exact:{tmp_path / 'a'}", create=OLD) as index:
        assert index.counts() == {0: 1}
    with pytest.raises(GenerationError, match="of the encoder old"):
        open_index(f"exact:{tmp_path / 'a'}", create=Generation(0, "another", 8))
    np.save(tmp_path / "vectors.npy", units(2, 8))
    for create in (None, OLD):
        with pytest.raises(GenerationError, match="adopt"):
            open_index(f"exact:{tmp_path}", create=create)
    for wrong in ("exact:", "nothing", "ftp://x", "qdrant:place", "lancedb:#t", "postgresql://x"):
        with pytest.raises(DataError, match=r"exact:FOLDER|'#'"):
            open_index(wrong)


MEMORY = """
import re, sys, numpy as np
from pathlib import Path
from instar.retrieval.exact import ExactIndex
from instar.interfaces import Generation

def kilobytes(name):
    return int(re.search(name + r":\\s*(\\d+)", Path("/proc/self/status").read_text())[1])

Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
before = kilobytes("VmRSS")
index = ExactIndex(sys.argv[1])
n, dim = index.counts()[0], index.generations()[0].dim
query = np.zeros((64, dim), np.float32)
query[:, 0] = 1
index.search({0: query}, 10)
print((kilobytes("VmHWM") - before) / (n * dim * 4 / 1024))
index.begin(Generation(1, "new", dim))
new = np.zeros((n // 20, dim), np.float32)
new[:, 1] = 1
names = index.ids(0, limit=n)
for at in range(0, n, n // 20):
    index.move(names[at : at + n // 20], new, 1)
index.search({0: query, 1: query}, 10)
print((kilobytes("VmHWM") - before) / (n * dim * 4 / 1024))
"""


def test_memory_is_that_of_the_vectors(tmp_path: Path) -> None:
    """Opening and searching need the vectors once, and scores of a fixed size (64 MB and what picks the best of them)."""
    rows, dim = 100_000, 256
    table = np.lib.format.open_memmap(tmp_path / "vectors.npy", mode="w+", dtype=np.float32, shape=(rows, dim))
    table[:, 0] = 1
    table.flush()
    ExactIndex.adopt(str(tmp_path), generation=Generation(0, "old", dim)).close()
    answer = subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path)], check=True, capture_output=True, text=True).stdout
    opened, changed = map(float, answer.split())
    scores = 2.5 * (1 << 26) / (rows * dim * 4)
    assert 0.9 < opened < 1.2 + scores
    assert changed < 2.2 + scores
