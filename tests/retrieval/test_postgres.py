"""PostgreSQL with pgvector: a real server, the user's own table, hostile names, kills, readers beside a writer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from digits import OTHERS, PARTS, PIXELS, encoded, expect
from instar.errors import DataError, GenerationError, ShapeError, StoreError
from instar.interfaces import Generation

psycopg = pytest.importorskip("psycopg")
pytest.importorskip("pgvector")
from instar.retrieval.postgres_store import PostgresIndex  # noqa: E402

N = 300
VECTORS, QUERIES = encoded(N)


@pytest.fixture
def db(postgres: str) -> Iterator[Any]:
    with psycopg.connect(postgres, autocommit=True) as connection:
        yield connection
        tables = connection.execute("SELECT schemaname, tablename FROM pg_tables WHERE schemaname IN ('public', 'my schema')")
        for schema, table in tables.fetchall():
            connection.execute(psycopg.sql.SQL("DROP TABLE {} CASCADE").format(psycopg.sql.Identifier(schema, table)))


def text(vector: Any) -> str:
    return "[" + ",".join(map(str, vector.tolist())) + "]"


def fill(
    db: Any, table: str = "docs", id_type: str = "integer", column: str = "embedding", ids: Any = None, index: str = ""
) -> list:
    """The table of an application, with columns of its own."""
    ids = list(range(N)) if ids is None else ids
    of = psycopg.sql.Identifier
    query = psycopg.sql.SQL(
        "CREATE TABLE {} (title text NOT NULL, {} " + id_type + " PRIMARY KEY, {} vector(64), n int DEFAULT 7)"
    )
    db.execute(query.format(of(table), of("doc id"), of(column)))
    with db.cursor() as cursor:
        query = psycopg.sql.SQL("INSERT INTO {} VALUES (%s, %s, %s)").format(of(table))
        cursor.executemany(query, [(f"Title {i}", ids[i], text(VECTORS[0][i])) for i in range(N)])
    if index:
        db.execute(psycopg.sql.SQL("CREATE INDEX ON {} USING " + index).format(of(table), of(column)))
    return ids


@pytest.mark.parametrize(
    ("id_type", "ids"),
    [
        ("integer", list(range(N))),
        ("text", [f"row '{i}' %s é" for i in range(N)]),
        ("uuid", [str(uuid.UUID(int=i * 7919)) for i in range(N)]),
    ],
)
def test_a_change_of_a_table_that_exists(db: Any, postgres: str, id_type: str, ids: list) -> None:
    fill(db, id_type=id_type, ids=ids)
    with pytest.raises(GenerationError, match="adopt"):
        PostgresIndex.open(postgres, "docs")
    index = PostgresIndex.adopt(postgres, "docs", PIXELS)
    beside = PostgresIndex.open(postgres, "docs", readonly=True)
    where = [0] * N
    expect(index, ids, VECTORS, QUERIES, where)
    order = np.random.default_rng(0).permutation(N)
    for moved in (0, 100, 300):
        index.begin(PARTS)
        part = order[:moved]
        index.move([ids[i] for i in part], VECTORS[1][part], 1)
        for i in part:
            where[i] = 1
        expect(index, ids, VECTORS, QUERIES, where)
        expect(beside, ids, VECTORS, QUERIES, where)
        if moved == 100:
            index.rollback()
            where = [0] * N
            expect(beside, ids, VECTORS, QUERIES, where)
            with pytest.raises(GenerationError, match="no older"):
                index.rollback()
    index.finish()
    index.finish()
    assert [g.number for g in index.generations()] == [1]
    expect(beside, ids, VECTORS, QUERIES, where)
    kept = db.execute('SELECT "doc id", title, n FROM docs').fetchall()
    assert sorted((str(a), b, c) for a, b, c in kept) == sorted((str(a), f"Title {i}", 7) for i, a in enumerate(ids))
    columns = db.execute("SELECT attname FROM pg_attribute WHERE attrelid = 'docs'::regclass AND attnum > 0 AND NOT attisdropped")
    assert [row[0] for row in columns] == ["title", "doc id", "n", "embedding_g1"]
