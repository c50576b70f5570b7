"""Rows of a PostgreSQL table with pgvector, searched by the database itself: `postgresql://…#TABLE`.

Every generation is a column of vectors in the user's own table; the application's columns, constraints and habits stay as they
are. A search, whatever the number of generations and queries, is one statement, so it sees one snapshot: every row exactly once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from instar.errors import GenerationError, ShapeError, StoreError
from instar.interfaces import Floats, Fusion, Generation, Hits, Id
from instar.retrieval import checking
from instar.retrieval import fusion as fusing
from instar.retrieval import postgres_table as tables
from instar.retrieval.postgres_search import Snapshot, snapshot
from instar.retrieval.postgres_server import LONGEST_NAME, ChangedError, Server, quoted, vector_of
from instar.retrieval.postgres_table import Table, held, standing
from instar.retrieval.stamped import Stamp, StampedIndex, adopted, column_after, exists, hits, missing, unit, unstamped

_ATTEMPTS = 5

Answer = TypeVar("Answer")


class PostgresIndex(StampedIndex):
    """Rows of a table. Stamps stand in the table `instar_generations` of its schema.

    A new generation is a column `<vector>_g1`, indexed as the old column is: HNSW from the beginning, IVFFlat (which needs rows
    to learn from) by `finish`. `move`, `rollback` and `finish` are one transaction each; the last two change the catalogue only.
    Where an approximate index gives fewer than k rows, as it does when most of its rows have moved, that generation is read
    exactly. Ids are integers, texts or UUIDs (as text).
    """

    def __init__(self, server: Server, at: Table, readonly: bool) -> None:
        super().__init__(f"table '{at.name}' of {server.name}", readonly)
        self._server, self._at = server, at
        self._known: list[Stamp] = []
        self._operator = "<=>"
        self._starved: set[int] = set()
        for stamp in self.stamps():
            self._writing[stamp.generation.number] = stamp.generation.encoder

    @classmethod
    def open(cls, location: str, name: str, *, create: Generation | None = None, readonly: bool = False) -> PostgresIndex:
        """The stamped table `name` (or `schema.name`).

        create: where there is no such table, make one with columns `id` and `vector` for this generation; one that exists has to
        be of it. Raises StoreError for a table that is not there, GenerationError for one without a stamp.
        """
        server = Server(location, readonly and create is None)
        found = tables.locate(server, name)
        if found is None and create is not None:
            checking.described(create)
            found = tables.make(server, name, create)
        if found is None:
            raise StoreError(f"{server.name} has no table '{name}'.")
        stamps, id_column = tables.stamped(server, *found)
        where = f"Table '{name}' of {server.name}"
        if not stamps:
            raise unstamped(where)
        if create is not None:
            adopted(stamps, create, where)
        return cls(server, tables.table(server, *found, id_column), readonly)

    @classmethod
    def adopt(
        cls,
        location: str,
        name: str,
        generation: Generation,
        *,
        id_column: str | None = None,
        vector_column: str | None = None,
    ) -> PostgresIndex:
        """Stamp a table that exists: its vectors are of `generation`. The table itself is not changed.

        id_column: unique and not null; the primary key by default. vector_column: by default the only one of type vector. Reads
        all vectors once. Raises StoreError, DataError for vectors of other dimensions, zero, or not unit where that matters,
        GenerationError for a table that is stamped otherwise.
        """
        server = Server(location, readonly=False)
        found = tables.locate(server, name)
        if found is None:
            raise StoreError(f"{server.name} has no table '{name}'.")
        stamps, _ = tables.stamped(server, *found)
        if not adopted(stamps, generation, f"Table '{name}' of {server.name}"):
            at = tables.table(server, *found, id_column)
            column = tables.vector_column(server, at, vector_column, generation)
            with server.transaction("stamp the table"):
                tables.stamp(server, at, Stamp(generation, column))
        return cls.open(location, name)

    def stamps(self) -> list[Stamp]:
        """See `StampedIndex.stamps`."""
        found = self._kept()
        if found != self._known:
            # A new column is indexed as the old one, so that one operator serves all.
            self._operator = tables.operator(self._server, self._at, found[0].column)
            self._known, self._starved = found, set()
        return found

    def counts(self) -> dict[int, int]:
        """See `Index.counts`. O(N)."""

        def ask(stamps: list[Stamp]) -> dict[int, int]:
            parts = ", ".join(f"count(*) FILTER (WHERE {standing(stamps, place)})" for place in range(len(stamps)))
            row = self._server.run(f"SELECT {parts} FROM {self._at.sql} AS s").fetchone()
            return {s.generation.number: n for s, n in zip(stamps, row, strict=True)}

        return self._settled(ask)

    def ids(self, generation: int, *, after: Id | None = None, limit: int = 10_000) -> list[Id]:
        """See `Index.ids`: in the order of the id column."""
        start = [] if after is None else self._at.ids.given([after])

        def ask(stamps: list[Stamp]) -> list[Id]:
            where = standing(stamps, self.place(stamps, generation)) + (
                f" AND {self._at.id} > %s::{self._at.ids.cast}" if start else ""
            )
            query = f"SELECT {self._at.id} FROM {self._at.sql} AS s WHERE {where} ORDER BY {self._at.id} LIMIT %s"
            return [self._at.ids.taken(row[0]) for row in self._server.run(query, (*start, limit)).fetchall()]

        return self._settled(ask)

    def fetch(self, ids: Sequence[Id]) -> tuple[list[Floats], list[int]]:
        """See `Index.fetch`."""
        asked = list(ids)
        spelled = {name: self._at.ids.given([name])[0] for name in asked}
        names = list(dict.fromkeys(spelled.values()))

        def ask(stamps: list[Stamp]) -> dict[Id, tuple[int, Floats]]:
            newest = ", ".join(quoted(s.column) for s in reversed(stamps))
            number = " ".join(f"WHEN {quoted(s.column)} IS NOT NULL THEN {s.generation.number}" for s in reversed(stamps))
            query = (
                f"SELECT {self._at.id}, CASE {number} END, COALESCE({newest}) FROM {self._at.sql} AS s "
                f"WHERE {self._at.id} = ANY(%s::{self._at.ids.cast}[]) AND {held(stamps)}"
            )
            rows = self._server.run(query, (names,)).fetchall()
            return {self._at.ids.taken(name): (number, unit(vector_of(vector))) for name, number, vector in rows}

        found = self._settled(ask)
        if lost := [name for name in names if name not in found]:
            raise missing(lost)
        rows = [found[spelled[name]] for name in asked]
        return [vector for _, vector in rows], [number for number, _ in rows]

    def add(self, ids: Sequence[Id], vectors: Floats, generation: int) -> None:
        """See `Index.add`. A row of the application that has no vector yet is given one; other rows are inserted."""
        self.writable()
        if len(ids):
            self._at = tables.retype(self._server, self._at, checking.ids(ids)[0])
        names = self._at.ids.given(ids)

        def write(stamps: list[Stamp]) -> None:
            stamp = self.target(stamps, generation, newest=False)
            rows = checking.vectors(vectors, stamp.generation.dim, count=len(names))
            vector, cast = quoted(stamp.column), self._at.ids.cast
            given = dict(zip(names, self._server.rows(rows), strict=True))
            query = (
                f"UPDATE {self._at.sql} AS s SET {vector} = v.vector FROM unnest(%s::{cast}[], %s::vector[]) AS v(id, vector) "
                f"WHERE s.{self._at.id} = v.id AND NOT {held(stamps)} RETURNING v.id"
            )
            there = {
                self._at.ids.taken(r[0]) for r in self._server.run(query, (names, list(given.values())), "add rows").fetchall()
            }
            new = [name for name in names if name not in there]
            query = (
                f"INSERT INTO {self._at.sql} ({self._at.id}, {vector}) SELECT * FROM unnest(%s::{cast}[], %s::vector[]) "
                f"ON CONFLICT ({self._at.id}) DO NOTHING RETURNING {self._at.id}"
            )
            made = self._server.run(query, (new, [given[n] for n in new]), "add rows").fetchall()
            if len(made) < len(new):
                raise exists([n for n in new if n not in {self._at.ids.taken(r[0]) for r in made}])

        self._changing(write, "add rows")

    def remove(self, ids: Sequence[Id]) -> None:
        """See `Index.remove`. The rows of the table go, with all their columns."""
        self.writable()
        names = self._at.ids.given(ids)

        def write(stamps: list[Stamp]) -> None:
            query = f"DELETE FROM {self._at.sql} AS s WHERE {self._at.id} = ANY(%s::{self._at.ids.cast}[]) AND {held(stamps)}"
            self._complete(self._server.run(f"{query} RETURNING {self._at.id}", (names,), "remove rows"), names)

        self._changing(write, "remove rows")

    def begin(self, generation: Generation) -> None:
        """See `Index.begin`. Adds a column, then indexes it beside all other work; an index that was interrupted is made anew."""
        self.writable()
        if generation.dim > 16_000:
            raise ShapeError(f"pgvector holds vectors of 16000 dimensions at most, received {generation.dim}.")
        with self._server.alone(self.where):
            with self._server.transaction("open a generation", changes_table=True):
                stamps = self._kept("FOR UPDATE")
                if self.opens(stamps, generation):
                    column = column_after(stamps, generation.number, LONGEST_NAME)
                    if column in tables.columns(self._server, self._at.schema, self._at.name):
                        raise StoreError(
                            f"{self.where} has a column '{column}' already, where the new vectors would stand; rename it."
                        )
                    query = f"ALTER TABLE {self._at.sql} ADD COLUMN {quoted(column)} vector({generation.dim})"
                    self._server.run(query, (), "add a column")
                    tables.stamp(self._server, self._at, Stamp(generation, column))
            stamps = self.stamps()
            if len(stamps) > 1:
                tables.index_like(self._server, self._at, stamps[-2].column, stamps[-1], ("hnsw",))
                left = f"({self._at.id}) WHERE {quoted(stamps[-1].column)} IS NULL"
                tables.concurrently(self._server, self._at, tables.index_over_left(self._at, stamps[-1]), left)

    def move(self, ids: Sequence[Id], vectors: Floats, generation: int) -> None:
        """See `Index.move`. One UPDATE; the older vectors stay until `finish`."""
        self.writable()
        names = self._at.ids.given(ids)

        def write(stamps: list[Stamp]) -> None:
            stamp = self.target(stamps, generation, newest=True)
            rows = checking.vectors(vectors, stamp.generation.dim, count=len(names))
            query = (
                f"UPDATE {self._at.sql} AS s SET {quoted(stamp.column)} = v.vector "
                f"FROM unnest(%s::{self._at.ids.cast}[], %s::vector[]) AS v(id, vector) "
                f"WHERE s.{self._at.id} = v.id AND {held(stamps)} RETURNING v.id"
            )
            self._complete(self._server.run(query, (names, self._server.rows(rows)), "move rows"), names)

        self._changing(write, "move rows")

    def nearest(self, generation: int, queries: Floats, k: int) -> Hits:
        """See `Index.nearest`."""
        found = self._snapshot({generation: queries}, k).found
        if generation not in found:
            checking.among(self.generations(), generation)
        return hits(found[generation], k, generation)

    def search(self, queries: Mapping[int, Floats], k: int, fusion: Fusion = "cosine") -> Hits:
        """See `Index.search`. One statement over all generations."""
        found = self._snapshot(queries, k)
        if found.lacking:
            return super().search(queries, k, fusion)  # which says what is lacking
        return fusing.merge([hits(rows, k, number) for number, rows in found.found.items()], k, fusion)

    def rollback(self) -> None:
        """See `Index.rollback`. One transaction, whatever the number of rows."""
        self.writable()
        with self._server.alone(self.where), self._server.transaction("go back", changes_table=True):
            stamps = self._locked()
            self.older(stamps)
            newest, before = quoted(stamps[-1].column), held(stamps[:-1])
            query = f"SELECT count(*) FROM {self._at.sql} AS s WHERE {newest} IS NOT NULL AND NOT {before}"
            self.adds_left(self._server.run(query).fetchone()[0])
            self._drop(stamps[-1:])
        self.stamps()

    def finish(self) -> None:
        """See `Index.finish`. The space of older vectors is given back when rows are next written, or by VACUUM FULL."""
        self.writable()
        with self._server.alone(self.where):
            stamps = self.stamps()
            if len(stamps) > 1:
                self.rows_left(sum(list(self.counts().values())[:-1]))
                tables.index_like(self._server, self._at, stamps[-2].column, stamps[-1], ("hnsw", "ivfflat"))
            with self._server.transaction("end the older generations", changes_table=True):
                stamps = self._locked()
                if len(stamps) > 1:
                    query = (
                        f"SELECT count(*) FROM {self._at.sql} AS s WHERE {quoted(stamps[-1].column)} IS NULL AND {held(stamps)}"
                    )
                    self.rows_left(self._server.run(query).fetchone()[0])
                    self._drop(stamps[:-1])
                    left = quoted(self._at.schema, tables.index_over_left(self._at, stamps[-1]))
                    self._server.run(f"DROP INDEX IF EXISTS {left}", (), "drop an index")
        self.stamps()

    def close(self) -> None:
        """Give the connection back."""
        self._server.close()

    def _settled(self, ask: Callable[[list[Stamp]], Answer]) -> Answer:
        """An answer under stamps that did not change meanwhile: a column that is gone makes it start again."""
        for _ in range(_ATTEMPTS):
            try:
                return ask(self.stamps())
            except ChangedError:
                continue
        raise StoreError(f"The columns of {self.where} changed during each of {_ATTEMPTS} attempts, or lack one that is stamped.")

    def _changing(self, write: Callable[[list[Stamp]], None], doing: str) -> None:
        """One transaction, during which nobody can take a generation away."""
        try:
            with self._server.transaction(doing):
                write(self._kept("FOR SHARE"))
        except ChangedError as error:
            raise GenerationError(f"The generations of {self.where} changed meanwhile ({error}); nothing was written.") from error

    def _kept(self, lock: str = "") -> list[Stamp]:
        found, _ = tables.stamped(self._server, self._at.schema, self._at.name, lock)
        if not found:
            raise unstamped(self.where)
        return found

    def _locked(self) -> list[Stamp]:
        stamps = self._kept("FOR UPDATE")
        self._server.run(f"LOCK TABLE {self._at.sql} IN ACCESS EXCLUSIVE MODE", (), "lock the table")
        return stamps

    def _drop(self, stamps: Sequence[Stamp]) -> None:
        dropped = ", ".join(f"DROP COLUMN {quoted(s.column)}" for s in stamps)
        self._server.run(f"ALTER TABLE {self._at.sql} {dropped}", (), "drop a column")
        numbers = [s.generation.number for s in stamps]
        query = f"DELETE FROM {self._at.stamps} WHERE table_name = %s AND number = ANY(%s)"
        self._server.run(query, (self._at.name, numbers), "drop a stamp")

    def _complete(self, cursor: Any, names: Sequence[Id]) -> None:
        found = {self._at.ids.taken(row[0]) for row in cursor.fetchall()}
        if lost := [name for name in names if name not in found]:
            raise missing(lost)

    def _snapshot(self, queries: Mapping[int, Floats], k: int) -> Snapshot:
        stamps, exact = self._known, set[int]()
        for _ in range(2 * _ATTEMPTS):
            asked = {
                s.generation.number: checking.asked(s.generation, queries[s.generation.number], k)
                for s in stamps
                if s.generation.number in queries
            }
            self._server.widen(k, len(stamps) > 1)
            try:
                found = snapshot(self._server, self._at, stamps, self._operator, asked, k, exact | self._starved)
            except ChangedError:
                stamps = self.stamps()
                continue
            if found.stamps != stamps:
                stamps = self.stamps()
                continue
            short = {n for n, rows in found.found.items() if any(len(row) < k for row in rows)} - exact - self._starved
            if not short:
                return found
            exact |= short
            # What has moved away does not come back, so an older generation stays short; the newest one grows.
            self._starved |= short - {stamps[-1].generation.number}
        raise StoreError(f"The generations of {self.where} changed during each of {2 * _ATTEMPTS} searches; try again.")
