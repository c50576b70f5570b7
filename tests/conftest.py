"""For every test."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

# Two workers share two cores: threads beyond one each make small work several times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell that starts a job in the background has it ignore Ctrl-C, and so would every process that the tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What may take longest begins first, so that no worker sits over it alone at the end."""

    def patience(item: pytest.Item) -> float:
        marker = item.get_closest_marker("timeout")
        return float(marker.args[0]) if marker else 0.0

    items.sort(key=patience, reverse=True)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder with the compiled kernels in it: built once a session, seconds on one core."""
    from instar.kernels import native

    if shutil.which("g++") is None:
        pytest.skip("compiled kernels need g++")
    cache = tmp_path_factory.mktemp("kernels")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        native.build()
    return cache


@pytest.fixture
def compiled(built: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The compiled kernels are there (and nothing else of the cache)."""
    from instar.kernels import native

    monkeypatch.setenv("XDG_CACHE_HOME", str(built))
    yield
    native._open.cache_clear()
