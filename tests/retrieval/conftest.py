"""Real stores for the tests of indexes."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest


def start_postgres(folder: Path) -> object:
    """A server of its own, under a folder that its own system user may enter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of platformdirs, where there is no runtime directory
        import pgserver

        return pgserver.get_server(folder, cleanup_mode="stop")


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The address of a real PostgreSQL with pgvector; one for each worker of the tests."""
    pytest.importorskip("pgserver", reason="pgserver, which carries PostgreSQL with pgvector, is not installed")
    psycopg = pytest.importorskip("psycopg")
    # Not pytest's own folder: the path of a socket is short, and the server's user has to reach it.
    folder = Path(tempfile.mkdtemp(prefix="instar_pg_"))
    folder.chmod(0o755)
    server = start_postgres(folder / "data")
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:  # type: ignore[attr-defined]
        connection.execute("CREATE EXTENSION vector")
    yield server.get_uri()  # type: ignore[attr-defined]
    server.cleanup()  # type: ignore[attr-defined]
    shutil.rmtree(folder, ignore_errors=True)
    assert not os.path.exists(folder / "data" / "postmaster.pid")  # noqa: PTH110
