"""Files are written whole, and JSON says the same however its lists of numbers are laid out."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instar import files
from instar.errors import OutputError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(VALUES)
def test_json_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "value.json"
    files.write_json(path, value)
    assert json.loads(path.read_text("utf-8")) == value


def test_numbers_stand_in_one_line(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", {"items": [1, 2.5, -3e-7], "texts": ["a\n 1", "2"], "none": []})
    assert '"items": [1, 2.5, -3e-07]' in (tmp_path / "a.json").read_text()


def test_what_stood_there_stays_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="unchanged"):
        files.write(tmp_path / "folder", "text")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "b.json", {"x": float("nan")})
    assert not (tmp_path / "b.json").exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_device_or_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "link").symlink_to(pipe)  # as /dev/stdout is one
    for path in (pipe, tmp_path / "link"):
        writing = threading.Thread(target=files.write, args=(path, "text"), daemon=True)
        descriptor = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        writing.start()
        writing.join(10)
        assert pipe.is_fifo()
        assert (tmp_path / "link").is_symlink()
        assert os.read(descriptor, 10) == b"text"
        os.close(descriptor)
