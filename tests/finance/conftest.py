"""For the tests of news and prices: folders in memory, since stores are flushed many times and lose no power here."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="instar-", dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)
