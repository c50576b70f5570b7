"""Real stores for the tests of indexes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from store_contract import postgres_server


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The address of a real PostgreSQL with pgvector; one for each worker of the tests."""
    pytest.importorskip("pgserver", reason="pgserver, which carries PostgreSQL with pgvector, is not installed")
    pytest.importorskip("psycopg")
    with postgres_server() as server:
        yield server.get_uri()
