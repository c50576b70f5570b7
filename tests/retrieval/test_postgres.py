"""PostgreSQL with pgvector: a real server, the user's own table, hostile names, kills, readers beside a writer."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from digits import OTHERS, PARTS, PIXELS, change_and_back, encoded, expect
from store_contract import CHECKS, maker, postgres_server

from instar.checks.index import Stores
from instar.errors import DataError, GenerationError, ShapeError, StoreError
from instar.interfaces import Generation
from instar.retrieval.opening import adopt_index, open_index

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
    statement = psycopg.sql.SQL("COPY {} (title, {}, {}) FROM STDIN").format(of(table), of("doc id"), of(column))
    with db.cursor() as cursor, cursor.copy(statement) as copy:
        for i in range(N):
            copy.write_row((f"Title {i}", ids[i], text(VECTORS[0][i])))
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

    def again(index: Any) -> Any:
        expect(beside, ids, VECTORS, QUERIES, index.fetch(ids)[1])
        index.close()
        return PostgresIndex.open(postgres, "docs")

    change_and_back(index, ids, VECTORS, QUERIES, again).close()
    expect(beside, ids, VECTORS, QUERIES, [1] * N)
    beside.close()
    kept = db.execute('SELECT "doc id", title, n FROM docs').fetchall()
    assert sorted((str(a), b, c) for a, b, c in kept) == sorted((str(a), f"Title {i}", 7) for i, a in enumerate(ids))
    columns = db.execute("SELECT attname FROM pg_attribute WHERE attrelid = 'docs'::regclass AND attnum > 0 AND NOT attisdropped")
    assert [row[0] for row in columns] == ["title", "doc id", "n", "embedding_g1"]


@pytest.mark.parametrize("name", CHECKS)
def test_contract(db: Any, postgres: str, name: str) -> None:
    CHECKS[name](Stores(make=maker(lambda: f"{postgres}#made {uuid.uuid4().hex}"), rows=200))


def test_names_that_try_to_be_sql(db: Any, postgres: str) -> None:
    table, column = 'docs"; DROP TABLE bystander; --%s', "embedding \"of\" 'x' % %s"
    db.execute("CREATE TABLE bystander (id int PRIMARY KEY)")
    ids = fill(db, table, column=column)
    where = [1] * 50 + [0] * (N - 50)
    with adopt_index(f"{postgres}#{table}", PIXELS) as index:
        index.begin(PARTS)
        index.move(ids[:50], VECTORS[1][:50], 1)
        expect(index, ids, VECTORS, QUERIES, where)
        index.move(ids[50:], VECTORS[1][50:], 1)
        index.finish()
        expect(index, ids, VECTORS, QUERIES, [1] * N)
    assert db.execute("SELECT count(*) FROM bystander").fetchone() == (0,)
    for name in ("", "x" * 64, "a\0b"):
        with pytest.raises((StoreError, DataError), match=r"name|names"):
            open_index(f"{postgres}#{name}")


def test_a_schema_and_a_long_name(db: Any, postgres: str) -> None:
    db.execute('CREATE SCHEMA IF NOT EXISTS "my schema"')
    long = "é" * 31
    db.execute(f'CREATE TABLE "my schema"."{long}" (id bigint PRIMARY KEY, "{long}" vector(64))')
    with PostgresIndex.adopt(postgres, f"my schema.{long}", PIXELS) as index:
        index.add(list(range(N)), VECTORS[0], 0)
        index.begin(PARTS)
        index.move(list(range(9)), VECTORS[1][:9], 1)
        expect(index, list(range(N)), VECTORS, QUERIES, [1] * 9 + [0] * (N - 9))
        index.rollback()
        expect(index, list(range(N)), VECTORS, QUERIES, [0] * N)


METHODS = [
    ("hnsw ({} vector_cosine_ops) WITH (m = 8, ef_construction = 40)", "m='8', ef_construction='40'"),
    ("hnsw ({} vector_ip_ops)", "vector_ip_ops"),
    ("hnsw ({} vector_l2_ops)", "vector_l2_ops"),
    ("ivfflat ({} vector_cosine_ops) WITH (lists = 3)", "lists='3'"),
]


@pytest.mark.parametrize(("method", "kept"), METHODS)
def test_an_approximate_index_at_every_stage(db: Any, postgres: str, method: str, kept: str) -> None:
    """The new column is indexed as the old one was, and a search finds k rows even where few of an index are left."""
    ids = fill(db, index=method)
    # The planner of a small table takes no index by itself.
    with PostgresIndex.adopt(f"{postgres}&options=-c%20enable_seqscan%3Doff%20-c%20ivfflat.probes%3D3", "docs", PIXELS) as index:
        index.begin(PARTS)
        for start, end in ((0, 0), (0, 150), (150, 297), (297, 300)):
            index.move(ids[start:end], VECTORS[1][start:end], 1)
            true = {g: QUERIES[g] @ VECTORS[g].T for g in (0, 1)}
            scores = np.where(np.arange(N) < end, true[1], true[0])
            hits = index.search(QUERIES, 60)
            assert all(len(set(names)) == 60 for names in hits.ids.tolist())
            np.testing.assert_allclose(hits.scores, np.take_along_axis(scores, hits.ids.astype(int), 1), atol=1e-5)
            best = np.argsort(-scores, axis=1)[:, :60]
            recall = np.mean([len({*a} & {*b}) / 60 for a, b in zip(hits.ids.tolist(), best.tolist(), strict=True)])
            assert recall > 0.95
        index.finish()
    made = [row[0] for row in db.execute("SELECT indexdef FROM pg_indexes WHERE tablename = 'docs'").fetchall()]
    assert len(made) == 2
    assert any("embedding_g1" in line and kept in line for line in made)


def test_lengths_of_the_vectors_of_others(db: Any, postgres: str) -> None:
    """Cosine needs no unit vectors; inner products rank as cosines for nothing else."""
    fill(db, "inner_products", index="hnsw ({} vector_ip_ops)")
    db.execute('UPDATE inner_products SET embedding = embedding + embedding WHERE "doc id" = 3')
    with pytest.raises(DataError, match="unit vectors"):
        PostgresIndex.adopt(postgres, "inner_products", PIXELS)
    fill(db, "doubled")
    db.execute("UPDATE doubled SET embedding = embedding + embedding")
    with PostgresIndex.adopt(postgres, "doubled", PIXELS) as index:
        expect(index, list(range(N)), VECTORS, QUERIES, [0] * N)


def test_tables_that_cannot_be_adopted(db: Any, postgres: str) -> None:
    fill(db)
    with pytest.raises(DataError, match="64"):
        PostgresIndex.adopt(postgres, "docs", Generation(0, "e", 65))
    with pytest.raises(StoreError, match="halfvec"):
        PostgresIndex.adopt(postgres, "docs", PIXELS, vector_column="title")
    with pytest.raises(StoreError, match="UNIQUE"):
        PostgresIndex.adopt(postgres, "docs", PIXELS, id_column="title")
    with pytest.raises(StoreError, match="no table"):
        PostgresIndex.adopt(postgres, "elsewhere", PIXELS)
    db.execute("CREATE TABLE zeros (id int PRIMARY KEY, v vector(3))")
    db.execute("INSERT INTO zeros VALUES (1, '[0,0,0]')")
    with pytest.raises(DataError, match="zero"):
        PostgresIndex.adopt(postgres, "zeros", Generation(0, "e", 3))
    assert db.execute("SELECT to_regclass('instar_generations')").fetchone() == (None,)
    PostgresIndex.adopt(postgres, "docs", PIXELS).close()
    PostgresIndex.adopt(postgres, "docs", PIXELS).close()
    with pytest.raises(GenerationError, match="stamped already"):
        PostgresIndex.adopt(postgres, "docs", Generation(0, "another encoder", 64))
    with pytest.raises(StoreError, match="reached"):
        PostgresIndex.open("postgresql://nobody@127.0.0.1:1/none?connect_timeout=2", "docs")
    for password in ("sec/ret", "sec@ret", "sec ret/", "sec:ret@"):
        with pytest.raises(StoreError) as told:
            PostgresIndex.open(f"postgresql://me:{password}@127.0.0.1:1/none?connect_timeout=2", "docs")
        assert "sec" not in str(told.value)
        assert "ret" not in str(told.value)


def test_rows_of_the_application(db: Any, postgres: str) -> None:
    """What an application inserts, empties and deletes during a change is right at once; new rows keep its constraints."""
    ids = fill(db)
    with PostgresIndex.adopt(postgres, "docs", PIXELS) as index:
        index.begin(PARTS)
        index.move(ids[:100], VECTORS[1][:100], 1)
        db.execute('DELETE FROM docs WHERE "doc id" IN (5, 200)')
        db.execute('UPDATE docs SET embedding = NULL WHERE "doc id" = 250')
        where = [1] * 100 + [0] * (N - 100)
        where[5] = where[200] = where[250] = -1
        expect(index, ids, VECTORS, QUERIES, where)
        with pytest.raises(DataError, match="250"):
            index.move([249, 250], VECTORS[1][249:251], 1)
        db.execute("INSERT INTO docs VALUES ('again', 200, %s)", (text(VECTORS[0][200]),))
        index.add([250], VECTORS[0][250:251], 0)
        where[200] = where[250] = 0
        expect(index, ids, VECTORS, QUERIES, where)
        with pytest.raises(DataError, match="title"):
            index.add([5], VECTORS[0][5:6], 0)  # the table wants a title
        with pytest.raises(DataError, match="exist already"):
            index.add([200, 250], VECTORS[0][[200, 250]], 0)
        with pytest.raises(DataError, match="bigint"):
            index.move(["1"], VECTORS[1][:1], 1)
        expect(index, ids, VECTORS, QUERIES, where)
        db.execute("CREATE VIEW shown AS SELECT embedding FROM docs")
        index.move([i for i in ids if where[i] == 0], VECTORS[1][[i for i in ids if where[i] == 0]], 1)
        with pytest.raises(StoreError, match="depend"):
            index.finish()
        db.execute("DROP VIEW shown")
        index.finish()
        expect(index, ids, VECTORS, QUERIES, [g if g < 0 else 1 for g in where])


def test_a_writer_that_was_overtaken(db: Any, postgres: str) -> None:
    """Another process took the generation back and opened it for another encoder: vectors of the first are strangers now."""
    ids = fill(db)
    first = PostgresIndex.adopt(postgres, "docs", PIXELS)
    first.begin(PARTS)
    second = PostgresIndex.open(postgres, "docs")
    second.rollback()
    with pytest.raises(GenerationError):
        first.move(ids[:9], VECTORS[1][:9], 1)
    second.begin(OTHERS)
    with pytest.raises(GenerationError, match="opened it anew"):
        first.move(ids[:9], VECTORS[1][:9], 1)
    with pytest.raises(GenerationError, match="is open for"):
        first.begin(PARTS)
    second.move(ids[:9], VECTORS[1][:9], 1)
    expect(first, ids, VECTORS, QUERIES, [1] * 9 + [0] * (N - 9))
    with PostgresIndex.open(postgres, "docs", readonly=True) as reader, pytest.raises(StoreError, match="read only"):
        reader.rollback()
    first.close()
    second.close()


def test_an_interrupted_index_is_made_anew(db: Any, postgres: str) -> None:
    fill(db, index="hnsw ({} vector_cosine_ops)")
    with PostgresIndex.adopt(postgres, "docs", PIXELS) as index:
        index.begin(PARTS)
        valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = 'docs_embedding_g1_hnsw'::regclass"
        # What a kill in the middle of CREATE INDEX CONCURRENTLY leaves behind.
        db.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'docs_embedding_g1_hnsw'::regclass")
        assert db.execute(valid).fetchone() == (False,)
        index.begin(PARTS)
        assert db.execute(valid).fetchone() == (True,)
        with pytest.raises(ShapeError, match="16000"):
            index.begin(Generation(1, "e", 20_000))


def test_a_connection_that_is_lost(db: Any, postgres: str) -> None:
    ids = fill(db)
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'instar'"
    with PostgresIndex.adopt(postgres, "docs", PIXELS) as index:
        index.begin(PARTS)
        index.move(ids[:9], VECTORS[1][:9], 1)
        db.execute(end)
        with pytest.raises(StoreError, match="call again"):
            index.move(ids[9:20], VECTORS[1][9:20], 1)
        expect(index, ids, VECTORS, QUERIES, [1] * 9 + [0] * (N - 9))
        index.move(ids[9:20], VECTORS[1][9:20], 1)
        expect(index, ids, VECTORS, QUERIES, [1] * 20 + [0] * (N - 20))


def wait_for_the_end_of(pid: int) -> None:
    psutil = pytest.importorskip("psutil")
    for _ in range(200):
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:  # nobody may be there to take note of its end
                return
        except psutil.NoSuchProcess:
            return
        time.sleep(0.05)


@pytest.mark.usefixtures("postgres")
def test_a_server_that_dies() -> None:
    """It is ended as a crash would, without a word to its clients; what had returned is there when it is up again."""
    with postgres_server() as server:
        with psycopg.connect(server.get_uri(), autocommit=True) as db:
            ids = fill(db)
        index = PostgresIndex.adopt(server.get_uri(), "docs", PIXELS)
        index.begin(PARTS)
        index.move(ids[:77], VECTORS[1][:77], 1)
        os.kill(server.get_pid(), signal.SIGQUIT)
        moved = 77
        try:
            while moved < N:
                index.move(ids[moved : moved + 1], VECTORS[1][moved : moved + 1], 1)
                moved += 1
        except StoreError as error:
            reason = str(error)
        assert "call again" in reason or "cannot be reached" in reason
        with pytest.raises(StoreError, match="cannot be reached"):
            index.counts()
        wait_for_the_end_of(server.get_pid())
        server.ensure_postgres_running()
        there = index.counts()[1]
        assert there in (moved, moved + 1)  # the row whose commit was under way may have made it
        expect(index, ids, VECTORS, QUERIES, [1] * there + [0] * (N - there))
        index.rollback()
        expect(index, ids, VECTORS, QUERIES, [0] * N)
        index.close()
