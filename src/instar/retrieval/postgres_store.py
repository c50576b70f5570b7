"""Rows of a PostgreSQL table with pgvector, searched by the database itself: `postgresql://…#TABLE`.

Every generation is a column of vectors in the user's own table; the application's columns, constraints and habits stay as they
are. A search, whatever the number of generations and queries, is one statement, so it sees one snapshot: every row exactly once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from instar.errors import ShapeError, StoreError
from instar.interfaces import Floats, Fusion, Generation, Hits
from instar.retrieval import checking
from instar.retrieval import fusion as fusing
from instar.retrieval import postgres_table as tables
from instar.retrieval.postgres_rows import PostgresRows
from instar.retrieval.postgres_search import Snapshot, snapshot
from instar.retrieval.postgres_server import LONGEST_NAME, ChangedError, Server, quoted
from instar.retrieval.postgres_table import held
from instar.retrieval.stamped import Stamp, adopted, column_after, hits, unstamped

_ATTEMPTS = 10


class PostgresIndex(PostgresRows):
    """Rows of a table. Stamps stand in the table `instar_generations` of its schema.

    A new generation is a column `<vector>_g1`, indexed as the old column is: HNSW from the beginning, IVFFlat (which needs rows
    to learn from) by `finish`. `move`, `rollback` and `finish` are one transaction each; the last two change the catalogue only.
    Where an approximate index gives fewer than k rows, as it does when most of its rows have moved, that generation is read
    exactly. Ids are integers, texts or UUIDs (as text).
    """

    @classmethod
    def open(cls, location: str, name: str, *, create: Generation | None = None, readonly: bool = False) -> PostgresIndex:
        """The stamped table `name` (or `schema.name`).

        create: where there is no such table, make one with columns `id` and `vector` for this generation; one that exists has to
        be of it. Raises StoreError for a table that is not there, GenerationError for one without a stamp.
        """
        server = Server(location, readonly and create is None)
        try:
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
        except BaseException:
            server.close()
            raise

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
        try:
            found = tables.locate(server, name)
            if found is None:
                raise StoreError(f"{server.name} has no table '{name}'.")
            stamps, stamped_ids = tables.stamped(server, *found)
            at = tables.table(server, *found, stamped_ids or id_column)
            if not adopted(stamps, generation, f"Table '{name}' of {server.name}"):
                column = tables.vector_column(server, at, vector_column, generation)
                with server.transaction("stamp the table"):
                    tables.stamp(server, at, Stamp(generation, column))
            return cls(server, at, readonly=False)
        except BaseException:
            server.close()
            raise

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
                for name, condition in tables.halves(self._at, stamps[-1]).items():
                    tables.concurrently(self._server, self._at, name, f"({self._at.id}) WHERE {condition}")
                tables.analyse(self._server, self._at, stamps[-1].column)

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
                    for name in tables.halves(self._at, stamps[-1]):
                        self._server.run(f"DROP INDEX IF EXISTS {quoted(self._at.schema, name)}", (), "drop an index")
        self.stamps()

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

    def _snapshot(self, queries: Mapping[int, Floats], k: int) -> Snapshot:
        stamps, exact = self._known, set[int]()
        for _ in range(_ATTEMPTS):
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
        raise StoreError(f"The generations of {self.where} changed during each of {_ATTEMPTS} searches; try again.")
