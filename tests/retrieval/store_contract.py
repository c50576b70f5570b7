"""The contract of an index for stores of this machine, and a folder whose writes do not wait for a disk."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from instar.checks.index import CONTRACT
from instar.interfaces import Floats, Generation, Id
from instar.retrieval.opening import open_index

CHECKS = {check.__name__.removeprefix("check_"): check for check in CONTRACT}


@contextmanager
def quick_folder() -> Iterator[Path]:
    """In memory where there is such a place: these tests flush thousands of times, and lose no power."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="instar-", dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


def maker(address: Callable[[], str]) -> Callable[[Generation, Sequence[Id], Floats], str]:
    """Makes an index with rows at a new address."""

    def make(generation: Generation, ids: Sequence[Id], vectors: Floats) -> str:
        url = address()
        with open_index(url, create=generation) as index:
            index.add(ids, vectors, generation.number)
        return url

    return make
