"""Rows of a PostgreSQL table: reading them, adding, moving and removing them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from instar.errors import GenerationError, StoreError
from instar.interfaces import Floats, Id
from instar.retrieval import checking
from instar.retrieval import postgres_table as tables
from instar.retrieval.postgres_server import ChangedError, Server, quoted, vector_of
from instar.retrieval.postgres_table import Table, held, standing
from instar.retrieval.stamped import Stamp, StampedIndex, exists, missing, unit, unstamped

_ATTEMPTS = 5
_FIRST_ANALYSED = 1000
"""Rows that have moved when the planner is first told; then whenever they have doubled."""

Answer = TypeVar("Answer")


class PostgresRows(StampedIndex):
    """What `PostgresIndex` does with rows."""

    def __init__(self, server: Server, at: Table, readonly: bool) -> None:
        super().__init__(f"table '{at.name}' of {server.name}", readonly)
        self._server, self._at = server, at
        self._known: list[Stamp] = []
        self._operator = "<=>"
        self._starved: set[int] = set()
        """Older generations of which an index no longer gives enough rows."""
        self._moved, self._analysed = 0, _FIRST_ANALYSED // 2
        for stamp in self.stamps():
            self._writing[stamp.generation.number] = stamp.generation.encoder

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
            return [self._at.ids.taken(row[0]) for row in self._server.run(query, (*start, max(limit, 0))).fetchall()]

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
            query = f"SELECT {self._at.id} FROM {self._at.sql} AS s WHERE {self._at.id} = ANY(%s::{cast}[]) AND {held(stamps)}"
            if held_already := self._server.run(query, (names,)).fetchall():
                raise exists([self._at.ids.taken(row[0]) for row in held_already])
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
        self._moved += len(names)
        if self._moved >= 2 * self._analysed:
            tables.analyse(self._server, self._at, self._known[-1].column)
            self._analysed = self._moved

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

    def _complete(self, cursor: Any, names: Sequence[Id]) -> None:
        found = {self._at.ids.taken(row[0]) for row in cursor.fetchall()}
        if lost := [name for name in names if name not in found]:
            raise missing(lost)
