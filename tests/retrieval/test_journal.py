"""Segments: there whole or not at all; torn, altered and foreign ones are told; one writer; interrupted ends resume."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from instar.errors import GenerationError, StoreError
from instar.interfaces import Floats, Generation
from instar.retrieval import manifest, tables
from instar.retrieval.exact import ExactIndex
from instar.retrieval.journal import Journal, Segment

OLD, NEW = Generation(0, "old", 8), Generation(1, "new", 12)
IDS = [f"row {i}" for i in range(30)]


def units(rows: int, dim: int, seed: int = 0) -> Floats:
    found = np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def made(folder: Path, moved: int = 20) -> ExactIndex:
    """30 rows, of which some moved in batches of five; still open."""
    index = ExactIndex.adopt(str(folder), generation=OLD, vectors=units(30, 8), ids=IDS)
    index.begin(NEW)
    for at in range(0, moved, 5):
        index.move(IDS[at : at + 5], units(30, 12, 1)[at : at + 5], 1)
    return index


@pytest.mark.parametrize(
    "segment",
    [
        Segment("move", 1, ["a", 7, "é\ud800"], units(3, 5)),
        Segment("remove", -1, [1, "1"]),
        Segment("begin", 2, details={"number": 2, "name": "n"}),
        Segment("rollback", 1),
    ],
    ids=lambda segment: segment.kind,
)
def test_segment_round_trip(segment: Segment, tmp_path: Path) -> None:
    log = Journal(tmp_path, "me")
    log.lock()
    log.append(1, segment)
    found = log.read(1)
    assert found is not None
    assert (found.kind, found.generation, list(found.ids), found.details) == (
        *(segment.kind, segment.generation, list(segment.ids), segment.details),
    )
    assert (found.vectors is None) == (segment.vectors is None)
    assert segment.vectors is None or np.array_equal(found.vectors, segment.vectors)
    assert log.read(2) is None


def test_every_cut_and_every_altered_byte_is_noticed(tmp_path: Path) -> None:
    log = Journal(tmp_path, "me")
    log.lock()
    log.append(1, Segment("move", 1, ["a", "b"], units(2, 3)))
    whole = log.path(1).read_bytes()
    for size in range(len(whole)):
        log.path(1).write_bytes(whole[:size])
        with pytest.raises(StoreError, match="0000000001"):
            log.read(1)
    for place in range(len(whole)):
        log.path(1).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(StoreError, match="0000000001"):
            log.read(1)
    log.path(1).write_bytes(whole + b"\0")
    with pytest.raises(StoreError, match="cut short or too long"):
        log.read(1)


def test_segments_of_another_index_or_place_are_refused(tmp_path: Path) -> None:
    made(tmp_path / "a").close()
    made(tmp_path / "b").close()
    first, second = (tmp_path / "a" / f"{n:010d}.segment" for n in (2, 3))
    kept = first.read_bytes()
    shutil.copy(tmp_path / "b" / first.name, first)
    with pytest.raises(StoreError, match="another index"):
        ExactIndex(tmp_path / "a")
    shutil.copy(second, first)
    with pytest.raises(StoreError, match="another index or place"):
        ExactIndex(tmp_path / "a")
    first.unlink()
    with pytest.raises(StoreError, match="is missing though later changes"):
        ExactIndex(tmp_path / "a")
    first.write_bytes(kept)
    (tmp_path / "a" / "0000000099.segment.bak").write_bytes(b"not ours")  # nor looked at
    with ExactIndex(tmp_path / "a") as index:
        assert index.counts() == {0: 10, 1: 20}


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "no manifest"), (b"[]", "no manifest"), (b'{"schema": 9}', "another schema"), (b'{"schema": 1}', "no manifest")],
)
def test_hostile_manifests(content: bytes, words: str, tmp_path: Path) -> None:
    made(tmp_path / "a").close()
    (tmp_path / "a" / manifest.NAME).write_bytes(content)
    with pytest.raises(StoreError, match=words):
        ExactIndex(tmp_path / "a")


def test_one_writer_at_a_time_and_readers_beside_it(tmp_path: Path) -> None:
    first = made(tmp_path / "a")
    second, reader = ExactIndex(tmp_path / "a"), ExactIndex(tmp_path / "a", readonly=True)
    with pytest.raises(StoreError, match=f"another writer .process {os.getpid()}"):
        second.remove([IDS[0]])
    with pytest.raises(StoreError, match="readonly"):
        reader.remove([IDS[0]])
    assert second.counts() == reader.counts() == {0: 10, 1: 20}
    first.remove([IDS[0]])
    first.close()
    with pytest.raises(StoreError, match="was closed"):
        first.counts()
    second.remove([IDS[1]])
    assert second.counts() == reader.counts() == {0: 10, 1: 18}


def test_the_lock_of_a_killed_writer_is_free(tmp_path: Path) -> None:
    made(tmp_path / "a").close()
    code = (
        "import os, signal, sys; from instar.retrieval.exact import ExactIndex; index = ExactIndex(sys.argv[1]); "
        "index.remove(['row 0']); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], check=False).returncode == -9
    with ExactIndex(tmp_path / "a") as index:
        index.remove(["row 1"])
        assert index.counts() == {0: 10, 1: 18}


class Stop(BaseException):
    """Not an error that anything handles."""


def interrupted_everywhere(monkeypatch: pytest.MonkeyPatch, folder: Path, act: str) -> list[ExactIndex]:
    """Copies of an index whose `act` was interrupted at each call to the system that changes something, opened again."""
    found = []
    moved = 30 if act == "finish" else 20
    for stop in range(100):
        place = folder / f"{act}-{stop}"
        index = made(place, moved)
        calls = 0

        def counting(real: Callable[..., Any], stop: int = stop) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls > stop:
                    raise Stop
                return real(*arguments, **options)

            return call

        with monkeypatch.context() as patch:
            for module, name in ((os, "replace"), (os, "fsync"), (Path, "unlink")):
                patch.setattr(module, name, counting(getattr(module, name)))
            try:
                getattr(index, act)()
            except Stop:
                pass
            else:
                index.close()
                assert stop > 4
                return found
        index.close()
        found.append(ExactIndex(place))
    raise AssertionError("it never ends")


def test_rollback_interrupted_anywhere_and_repeated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = set()
    for index in interrupted_everywhere(monkeypatch, tmp_path, "rollback"):
        seen.add(tuple(index.counts().items()))
        if len(index.generations()) == 2:
            index.rollback()
        assert np.array_equal(np.stack(index.fetch(IDS)[0]), units(30, 8))
        index.begin(NEW)
        index.move(IDS[:1], units(1, 12), 1)
        assert index.counts() == {0: 29, 1: 1}
        sizes = [path.stat().st_size for path in sorted(index.folder.glob("*.segment"))]
        assert max(sizes[1:5]) < 350  # the next writer gave the space of the moves back
        index.close()
        assert ExactIndex(index.folder).counts() == {0: 29, 1: 1}
    assert seen == {((0, 10), (1, 20)), ((0, 30),)}


def test_finish_interrupted_anywhere_and_repeated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = set()
    for index in interrupted_everywhere(monkeypatch, tmp_path, "finish"):
        seen.add(tuple(index.counts().items()))
        assert np.array_equal(np.stack(index.fetch(IDS)[0]), units(30, 12, 1))
        index.finish()
        assert index.counts() == {1: 30}
        assert np.array_equal(np.stack(index.fetch(IDS)[0]), units(30, 12, 1))
        assert {path.name for path in index.folder.iterdir()} == {
            *("manifest.json", "lock", "base-0000001.npy", "base-0000001.ids.json"),
        }
        index.close()
    assert seen == {((0, 0), (1, 30)), ((1, 30),)}


def test_a_full_disk_takes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    index = made(tmp_path / "a")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match=r"No space left on device.*None of its rows were taken"):
            index.move(IDS[20:], units(10, 12), 1)
        with pytest.raises(StoreError, match="No space"):
            index.rollback()
    assert index.counts() == {0: 10, 1: 20}
    index.move(IDS[20:], units(10, 12), 1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match="could not be written: No space"):
            index.finish()
    assert index.counts() == {0: 0, 1: 30}
    assert not list(index.folder.glob(".writing.*"))
    index.finish()


def test_the_folder_is_gone(tmp_path: Path) -> None:
    index = made(tmp_path / "a")
    shutil.rmtree(tmp_path / "a")
    with pytest.raises((StoreError, GenerationError)):
        index.counts()
    with pytest.raises((StoreError, GenerationError)):
        index.move(IDS[:1], units(1, 12), 1)


def test_a_finish_by_the_writer_reaches_readers_that_are_behind(tmp_path: Path) -> None:
    index = made(tmp_path / "a")
    reader = ExactIndex(tmp_path / "a", readonly=True)
    index.move(IDS[20:], units(10, 12), 1)
    index.finish()
    assert reader.counts() == {1: 30}
    index.begin(Generation(2, "newer", 8))
    index.move(IDS, units(30, 8, 3), 2)
    index.rollback()
    assert reader.counts() == {1: 30}


def test_a_reader_that_is_behind_a_rollback_whose_space_is_given_back_in_part(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Killed between two segments that become void: what stands alone of a row that was added, moved and removed."""
    index = made(tmp_path / "a", moved=0)
    reader = ExactIndex(tmp_path / "a", readonly=True)
    index.add(["x"], units(1, 12), 1)
    index.move(["x"], units(1, 12, 5), 1)
    index.remove(["x"])
    write, voided = Journal._write, []

    def killed(self: Journal, number: int, segment: Segment) -> None:
        if segment.kind == "void" and len(voided) == 1:
            raise KeyboardInterrupt
        voided.extend([number] if segment.kind == "void" else [])
        write(self, number, segment)

    monkeypatch.setattr(Journal, "_write", killed)
    with pytest.raises(KeyboardInterrupt):
        index.rollback()
    assert reader.counts() == {0: 30}
    assert reader.ids(0) == IDS


def test_ids_files(tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("a\nb\n")
    assert tables.names(None, tmp_path, 2) == ["a", "b"]
    np.save(tmp_path / "ids.npy", np.array([5, 3]))
    assert tables.names(None, tmp_path, 2) == [5, 3]
    (tmp_path / "ids.json").write_text('["x", 1]')
    assert tables.names(None, tmp_path, 2) == ["x", 1]
    (tmp_path / "ids.json").write_text('["x"')
    with pytest.raises(StoreError, match=r"ids\.json"):
        tables.names(None, tmp_path, 2)
    np.save(tmp_path / "evil.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(StoreError, match=r"evil\.npy"):  # nothing is unpickled
        tables.names(tmp_path / "evil.npy", tmp_path, 1)
    with pytest.raises(StoreError, match=r"evil\.npy"):
        tables.table(tmp_path / "evil.npy", 3)
