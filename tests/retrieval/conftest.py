"""Real stores for the tests of indexes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import made_change
import pytest
from store_contract import postgres_server

from instar.interfaces import Index


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    """The paragraphs of `made_change` under the old encoder."""
    with made_change.store(tmp_path / "store") as found:
        yield found


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The address of a real PostgreSQL with pgvector; one for each worker of the tests."""
    pytest.importorskip("pgserver", reason="pgserver, which carries PostgreSQL with pgvector, is not installed")
    pytest.importorskip("psycopg")
    with postgres_server() as server:
        yield server.get_uri()
