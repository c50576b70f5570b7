"""What others do to an index, and what it is asked for in error: an error of ours, in words, and every row as it was."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from digits import OTHERS, PARTS, PIXELS, encoded, expect
from store_contract import quick_folder

from instar.errors import DataError, GenerationError, InstarError, ShapeError, StoreError
from instar.interfaces import Generation
from instar.retrieval import manifest
from instar.retrieval.exact import ExactIndex
from instar.retrieval.opening import adopt_index, open_index
from instar.retrieval.usearch_index import UsearchIndex

N = 60
IDS = list(range(N))
VECTORS, QUERIES = encoded(N)
FILES = ("exact", "faiss", "usearch")


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_folder() as found:
        yield found


def address(kind: str, folder: Path) -> str:
    return f"{kind}:{folder / f'rows.{kind}'}"


def made(kind: str, folder: Path, moved: int = 0) -> Any:
    index = open_index(address(kind, folder), create=PIXELS)
    index.add(IDS, VECTORS[0], 0)
    if moved:
        index.begin(PARTS)
        index.move(IDS[:moved], VECTORS[1][:moved], 1)
    return index


def check(index: Any, moved: int) -> None:
    expect(index, IDS, VECTORS, QUERIES, [1] * moved + [0] * (N - moved))


@pytest.mark.parametrize("k", [0, -1, 10**9, 2**70, True, 2.0, "3", None, float("nan")])
def test_numbers_of_results(k: Any, folder: Path) -> None:
    with made("exact", folder, 20) as index:
        for ask in (lambda: index.search(QUERIES, k), lambda: index.nearest(0, QUERIES[0], k)):
            with pytest.raises(ShapeError, match="k expects a whole number"):
                ask()
        with pytest.raises(ShapeError, match="more than 100000000 results"):
            index.nearest(0, QUERIES[0], 10**8)
        assert index.search(QUERIES, np.int64(100)).ids.shape == (12, 100)


def test_queries_and_scores_that_do_not_belong_together(folder: Path) -> None:
    with made("exact", folder, 20) as index:
        with pytest.raises(ShapeError, match="same queries"):
            index.search({0: QUERIES[0][:2], 1: QUERIES[1][:3]}, 3)
        with pytest.raises(ShapeError, match="a score for each"):
            index.search(QUERIES, 3, lambda number, scores: scores[:, :1])


@pytest.mark.parametrize("store", ["exact", "lancedb"])
def test_ids_that_try_to_be_something_else(store: str, folder: Path) -> None:
    names = ["'; DROP TABLE rows; --", "../x", "x" * 100_000, "", "\0", "a\nb", "`", "%s", "\\'", "' OR 1=1 --", "\u202e", '"']
    if store == "exact":
        names += ["\ud800"]
    else:
        pytest.importorskip(store)
    vectors = {g: v[: len(names)] for g, v in VECTORS.items()}
    with open_index(f"{store}:{folder / 'made'}" + ("#rows" if store == "lancedb" else ""), create=PIXELS) as index:
        index.add(names, vectors[0], 0)
        index.begin(PARTS)
        index.move(names[::2], vectors[1][::2], 1)
        expect(index, names, vectors, QUERIES, [1 - i % 2 for i in range(len(names))], k=5)
        with pytest.raises(DataError) as told:
            index.move(["y" * 100_000], vectors[1][:1], 1)
        assert len(str(told.value)) < 400
        with pytest.raises(DataError, match="single text"):
            index.remove("ab")


@pytest.mark.parametrize("kind", FILES)
def test_a_store_that_is_gone_and_comes_back(kind: str, folder: Path) -> None:
    with made(kind, folder, 20) as index:
        shutil.move(index.folder, folder / "away")
        for call in (index.counts, index.finish, lambda: index.move([30], VECTORS[1][30:31], 1)):
            with pytest.raises(StoreError, match="is gone"):
                call()
        shutil.move(folder / "away", index.folder)
        check(index, 20)
        index.move([20], VECTORS[1][20:21], 1)
        check(index, 21)


@pytest.mark.parametrize("kind", FILES)
def test_a_store_that_was_replaced_by_one_of_another_encoder(kind: str, folder: Path) -> None:
    """Its generation 1 is not the one that this process has vectors for."""
    with made(kind, folder, 20) as index:
        for path in list(folder.iterdir()):
            path.rename(folder / f"old-{path.name}")
        with made(kind, folder) as other:
            other.begin(OTHERS)
        with pytest.raises(GenerationError, match="opened it anew"):
            index.move([0], VECTORS[1][:1], 1)
        with pytest.raises(GenerationError, match="opened it anew"):
            index.add([N], VECTORS[1][:1], 1)
        check(index, 0)


def test_a_lock_that_was_deleted_lets_no_two_write(folder: Path) -> None:
    first = made("exact", folder, 20)
    (first.folder / "lock").unlink()
    with ExactIndex(first.place) as second:
        second.move([20], VECTORS[1][20:21], 1)
        with pytest.raises(StoreError, match="another writer"):
            first.move([21], VECTORS[1][21:22], 1)
        check(first, 21)
    first.move([21], VECTORS[1][21:22], 1)
    check(first, 22)
    first.close()


@pytest.mark.parametrize("kind", ["faiss", "usearch"])
def test_what_another_program_wrote_into_the_file_is_not_written_over(kind: str, folder: Path) -> None:
    with made(kind, folder, N) as index:
        index.place.write_bytes(whole := index.place.read_bytes() + b"more")
        with pytest.raises(StoreError, match="another program has written it"):
            index.finish()
        assert index.place.read_bytes() == whole
        check(index, N)
        index.place.write_bytes(whole.removesuffix(b"more"))
        index.finish()


def test_folders_that_cannot_be_written(folder: Path) -> None:
    """A folder in place of the lock is refused as a folder without rights is, also to a user whom no right stops."""
    made("exact", folder).close()
    place = folder / "rows.exact"
    (place / "lock").unlink()
    (place / "lock").mkdir()
    with ExactIndex(place) as index:
        with pytest.raises(StoreError, match="can only be read"):
            index.begin(PARTS)
        check(index, 0)
    (folder / "file").write_text("no folder")
    for make in (
        lambda: adopt_index(f"exact:{folder / 'file' / 'deeper'}", PIXELS, vectors=VECTORS[0]),
        lambda: open_index(f"faiss:{folder / 'file' / 'deeper.faiss'}", create=PIXELS),
    ):
        with pytest.raises(StoreError, match="No index can be kept"):
            make()


def add(url: str, row: int, together: threading.Barrier, done: list[int], others: list[InstarError]) -> None:
    together.wait()
    try:
        with open_index(url, create=PIXELS) as index:
            index.add([row], VECTORS[0][row : row + 1], 0)
    except InstarError as error:
        others.append(error)
    else:
        done.append(row)


@pytest.mark.parametrize("kind", FILES)
def test_several_make_an_index_at_once(kind: str, folder: Path) -> None:
    """One of them does; the others open that one, or are told that somebody is at it, and no row of anybody is lost."""
    for turn in range(4):
        done: list[int] = []
        others: list[InstarError] = []
        together = threading.Barrier(4)
        (folder / str(turn)).mkdir()
        url = address(kind, folder / str(turn))

        threads = [threading.Thread(target=add, args=(url, row, together, done, others)) for row in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [str(error) for error in others if "another writer" not in str(error)] == []
        with open_index(url, create=PIXELS) as index:
            assert sorted(index.ids(0)) == sorted(done) != []


@pytest.mark.parametrize("kind", ["faiss", "usearch"])
def test_a_base_that_comes_to_its_place_while_it_is_read(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who makes an index names its file first and moves it then; who opens it in between finds it all the same."""
    url = address(kind, folder)
    with open_index(url, create=PIXELS) as index:
        index.add([1, 2], VECTORS[0][:2], 0)
    place = Path(url.partition(":")[2])
    pending = place.with_name(f"{place.name}.instar") / f"base-0000000.{kind}"
    place.replace(pending)
    unchanged = manifest.unchanged

    def moved(path: Path, expected: Any) -> None:
        if path == pending:
            pending.replace(place)
        unchanged(path, expected)

    monkeypatch.setattr(manifest, "unchanged", moved)
    with open_index(url, readonly=True) as index:
        assert sorted(index.ids(0)) == [1, 2]
    assert place.exists()


@pytest.mark.parametrize("kind", ["faiss", "usearch"])
def test_a_file_of_another_width_that_comes_while_it_is_read(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process ends a change between a reader's look at the stamp and its reading of the file."""
    url = address(kind, folder)
    with open_index(url, create=PIXELS) as index:
        index.add([1, 2], VECTORS[0][:2], 0)
        index.begin(PARTS)
        index.move([1, 2], VECTORS[1][:2], 1)
        unchanged, ended = manifest.unchanged, list[Path]()

        def late(path: Path, expected: Any) -> None:
            unchanged(path, expected)
            if not ended:
                ended.append(path)
                index.finish()

        monkeypatch.setattr(manifest, "unchanged", late)
        with open_index(url, readonly=True) as reader:
            assert reader.counts() == {1: 2}
            assert np.allclose(reader.fetch([2])[0][0], VECTORS[1][1], atol=1e-3)


def test_a_graph_of_usearch_is_the_same_in_every_process(folder: Path) -> None:
    """Its several threads leave, now and then, tens of rows to which no path leads, other ones at each opening."""
    rows = 3000
    vectors = np.random.default_rng(0).standard_normal((rows, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with open_index(f"usearch:{folder / 'rows.usearch'}", create=Generation(0, "e", 8)) as index:
        index.add(list(range(rows)), vectors, 0)
    graphs = []
    for turn in range(2):
        again: Any = UsearchIndex(folder / "rows.usearch", readonly=True)
        again._held.space(0)[0].save(folder / str(turn))
        graphs.append((folder / str(turn)).read_bytes())
    assert graphs[0] == graphs[1]


@pytest.mark.parametrize("call", [lambda i: i.rollback(), lambda i: i.begin(PIXELS), lambda i: i.move([0], VECTORS[0][:1], 0)])
def test_after_the_end_there_is_no_way_back(call: Callable[[Any], object], folder: Path) -> None:
    with made("exact", folder, N) as index:
        index.finish()
        with pytest.raises(GenerationError):
            call(index)
        check(index, N)
