"""The contract of an index for stores of this machine, a PostgreSQL, and a folder whose writes do not wait for a disk."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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


@contextmanager
def postgres_server() -> Iterator[Any]:
    """A server of its own with pgvector, gone at the end."""
    import psycopg

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of platformdirs, where there is no runtime directory
        import pgserver

    # Not pytest's own folder: the path of a socket is short, and the server's system user has to reach it.
    folder = Path(tempfile.mkdtemp(prefix="instar_pg_"))
    folder.chmod(0o755)
    server = pgserver.get_server(folder / "data", cleanup_mode="stop")
    try:
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            connection.execute("CREATE EXTENSION vector")
        yield server
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)
