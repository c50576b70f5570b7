"""The compiled kernel, built once for all tests that want it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from instar.kernels import native


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder with the compiled kernel in it."""
    if shutil.which("g++") is None:
        pytest.skip("the compiled kernel needs g++")
    cache = tmp_path_factory.mktemp("kernels")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        native.build()
    return cache


@pytest.fixture
def compiled(built: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The compiled kernel is there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(built))
    yield
    native._open.cache_clear()
