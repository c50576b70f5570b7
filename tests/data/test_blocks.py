"""Blocks: every byte in one block, splits by content, hostile files refused."""

from __future__ import annotations

import hashlib
import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instar.data import blocks, datasets
from instar.errors import DataError, UnknownNameError

LINES = "".join(f"line {i} {'x' * (i * 7 % 90)}\n" for i in range(20000)).encode()


def array(data: bytes) -> np.ndarray:
    return np.frombuffer(data, dtype=np.uint8)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 9000), max_size=8), st.randoms())
def test_blocks_put_together_are_the_text(lengths: list[int], random: object) -> None:
    text = b"\n".join(bytes([97 + n % 26]) * n for n in lengths)
    cut = list(blocks.cut(array(text)))
    assert b"".join(block for _, block in cut) == text
    assert all(0 < len(block) <= blocks.SIZE for _, block in cut)
    assert all(text[offset : offset + len(block)] == block for offset, block in cut)
    for (_, block), _ in itertools.pairwise(cut):
        assert block.endswith(b"\n") or len(block) == blocks.SIZE


def test_the_split_is_sha256_modulo_ten() -> None:
    split = blocks.split([array(LINES)], cap=10**6)
    for name, wanted in (("test", {0}), ("valid", {1}), ("train", set(range(2, 10)))):
        part = getattr(split, name)
        assert len(part)
        for i in range(len(part)):
            assert int.from_bytes(hashlib.sha256(part[i].tobytes()).digest(), "big") % 10 in wanted
    assert split.train.bytes + split.valid.bytes + split.test.bytes == len(LINES)


def test_more_text_moves_no_block_and_the_cap_is_stable() -> None:
    def contents(split: blocks.Split) -> set[bytes]:
        return {split.test[i].tobytes() for i in range(len(split.test))}

    one = blocks.split([array(LINES)], cap=10**6)
    two = blocks.split([array(LINES), array(LINES[::-1])], cap=10**6)
    assert contents(one) <= contents(two)
    assert one.sha256 != two.sha256
    capped = blocks.split([array(LINES)], cap=3)
    assert len(capped.test) == 3
    assert contents(capped) <= contents(one)
    assert capped.sha256 != one.sha256
    assert blocks.split([array(LINES)], cap=3).sha256 == capped.sha256


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "empty"), (b"PK\x03\x04" + bytes(500), "NUL"), (bytes(range(1, 9)) * 100, "control"), (None, "no file")],
)
def test_what_is_no_text_is_refused(content: bytes | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=words):
        blocks.open_text(path)
    with pytest.raises(DataError, match="folder"):
        blocks.open_text(tmp_path)


def test_latin1_text_is_text(tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes("Où est-il?\n".encode("latin-1") * 100)
    assert len(blocks.open_text(path)) == 1100


def test_a_named_set_is_held_to_its_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSTAR_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "text" / "tinyshakespeare" / "input.txt"
    path.parent.mkdir(parents=True)
    path.write_text("not Shakespeare")
    with pytest.raises(DataError, match="SHA-256"):
        datasets.locate("tinyshakespeare")
    with pytest.raises(UnknownNameError, match="tinyshakespeare"):
        datasets.locate("tinyshakespear")


@pytest.mark.skipif("INSTAR_DATA" not in os.environ, reason="INSTAR_DATA names no folder of data sets")
def test_the_real_sets_are_found() -> None:
    (path,) = datasets.locate("tinyshakespeare")
    assert path.stat().st_size == 1115394
