"""A connection to PostgreSQL with pgvector: names are quoted, failures say what they leave behind."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

from instar import extras
from instar.errors import DataError, StoreError
from instar.interfaces import Floats, Id
from instar.retrieval import checking

LONGEST_NAME = 63
"""Bytes of an identifier; PostgreSQL cuts longer ones without a word."""
_BEAM, _WIDEST = 40, 1000
"""hnsw.ef_search: pgvector's own, and the most that it takes."""
_WAIT = "30s"
"""How long a change of the table waits for others: all that come later wait behind it."""


def path(*names: str) -> str:
    """`"schema"."table"`, as a value. Raises StoreError for a name that PostgreSQL cannot hold."""
    for name in names:
        if not name or "\0" in name or len(name.encode()) > LONGEST_NAME:
            raise StoreError(f"PostgreSQL has no name such as {name!r}: it expects 1 to {LONGEST_NAME} bytes without NUL.")
    return ".".join('"' + name.replace('"', '""') + '"' for name in names)


def quoted(*names: str) -> str:
    """The same inside a statement, where a percent sign would begin a parameter."""
    return path(*names).replace("%", "%%")


class ChangedError(Exception):
    """A column or table that was there is gone: the generations have changed since they were read."""


class Server:
    """One connection; every statement is a transaction of its own unless it stands in `transaction`."""

    def __init__(self, location: str, readonly: bool) -> None:
        self._psycopg: Any = extras.require("psycopg", "postgres")
        self._vector: Any = extras.require("pgvector", "postgres").Vector
        self._location, self._readonly = location, readonly
        self._open: Any = None
        told = self._parts(location)
        place = told.get("host") or told.get("service") or "this machine"
        self.name = f"PostgreSQL database '{told.get('dbname') or told.get('user') or 'default'}' on {place}"
        self.connection()

    def _parts(self, location: str) -> dict[str, Any]:
        """What an address names. Messages hold none of one that is cut in wrong places: parts of it may be a password."""
        try:
            told: dict[str, Any] = extras.require("psycopg.conninfo", "postgres").conninfo_to_dict(location)
        except self._psycopg.Error:
            told = {"host": "@"}
        if any("@" in str(told.get(part, "")) for part in ("host", "dbname")):
            raise StoreError(
                "This is no address of PostgreSQL. Expected is postgresql://user:password@host:port/database; in a password the "
                "characters @ : / ? # % are written as %40 %3A %2F %3F %23 %25."
            )
        return told

    def connection(self) -> Any:
        """The connection, made anew when the last one was lost. Raises StoreError."""
        if self._open is not None and not self._open.closed:
            return self._open
        try:
            # Statements are not prepared: poolers give each transaction another session.
            found = self._psycopg.connect(self._location, autocommit=True, prepare_threshold=None, application_name="instar")
        except (self._psycopg.Error, UnicodeError) as error:
            raise StoreError(f"{self.name} cannot be reached: {_short(error)}") from error
        with self._told("open"):
            if found.execute("SELECT to_regtype('vector')").fetchone()[0] is None:
                found.close()
                raise StoreError(f"{self.name} has no pgvector: run CREATE EXTENSION vector there, as a user who may.")
            extras.require("pgvector.psycopg", "postgres").register_vector(found)
            self._set(found)
        self._open = found
        return found

    def _set(self, found: Any) -> None:
        found.execute("SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'")
        if self._readonly:
            found.execute("SET default_transaction_read_only = on")
        # The first use of the type loads pgvector, and with it the settings that it has.
        beam, goes_on = found.execute(
            "SELECT current_setting('hnsw.ef_search', true), current_setting('hnsw.iterative_scan', true) "
            "FROM (SELECT '[1]'::vector OFFSET 0) AS loaded"
        ).fetchone()
        self._own_beam = self._beam = int(beam or _BEAM)
        self._goes_on = goes_on is not None
        if self._goes_on:  # pgvector 0.8: filtered searches go on until they have k rows
            found.execute("SET hnsw.iterative_scan = strict_order")
            found.execute("SET ivfflat.iterative_scan = relaxed_order")

    def widen(self, k: int, several: bool) -> None:
        """Let HNSW look at enough rows: at k, and at twice as many where some of them stand in another generation."""
        connection = self.connection()
        wanted = min(max(self._own_beam * (2 if several and not self._goes_on else 1), k), _WIDEST)
        if wanted != self._beam:
            with self._told("search"):
                connection.execute(f"SET hnsw.ef_search = {wanted}")
            self._beam = wanted

    def run(self, query: str, parameters: Sequence[Any] = (), doing: str = "read") -> Any:
        """A cursor after one statement. Raises StoreError, DataError, ChangedError."""
        connection = self.connection()
        with self._told(doing):
            return connection.execute(query, parameters, binary=True)

    @contextlib.contextmanager
    def transaction(self, doing: str, *, changes_table: bool = False) -> Iterator[None]:
        """All statements of the block, or none. Raises what `run` raises."""
        connection = self.connection()
        with self._told(doing), connection.transaction():
            if changes_table:
                connection.execute(f"SET LOCAL lock_timeout = '{_WAIT}'")
            yield

    @contextlib.contextmanager
    def alone(self, what: str) -> Iterator[None]:
        """Nobody else changes the generations of `what` meanwhile; ends with the connection too. Raises StoreError."""
        key = f"instar {what}"
        if not self.run("SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", (key,)).fetchone()[0]:
            raise StoreError(f"Another process is changing the generations of {what} now; try again when it is done.")
        try:
            yield
        finally:
            if not self._open.closed:
                self.run("SELECT pg_advisory_unlock(hashtextextended(%s, 0))", (key,))

    def rows(self, vectors: Floats) -> list[Any]:
        """Vectors as parameters, binary on the way."""
        return [self._vector(row) for row in vectors]

    def close(self) -> None:
        """Give the connection back."""
        if self._open is not None:
            self._open.close()

    @contextlib.contextmanager
    def _told(self, doing: str) -> Iterator[None]:
        errors = self._psycopg.errors
        kept = "nothing of it was written, and every row is as it was"
        try:
            yield
        except (errors.UndefinedColumn, errors.UndefinedTable) as error:
            raise ChangedError(_short(error)) from error
        except (errors.LockNotAvailable, errors.DeadlockDetected, errors.SerializationFailure) as error:
            raise StoreError(f"{self.name} was busy ({doing}): {_short(error)} {kept.capitalize()}; try again.") from error
        except errors.InsufficientPrivilege as error:
            raise StoreError(f"{self.name} does not allow to {doing}: {_short(error)} Ask for that right.") from error
        except (errors.NotNullViolation, errors.CheckViolation, errors.ForeignKeyViolation) as error:
            raise DataError(
                f"The table expects more of a new row than id and vector: {_short(error)} Insert such rows as your application "
                "does, with their vector, or without one and then call add."
            ) from error
        except (self._psycopg.DataError, UnicodeError) as error:
            raise DataError(f"{self.name} refuses these values ({doing}): {_short(error)} {kept.capitalize()}.") from error
        except self._psycopg.Error as error:
            lost = self._open is not None and self._open.closed
            end = "a transaction happens as a whole or not at all, so call again: what had happened stays" if lost else kept
            raise StoreError(f"{self.name} failed ({doing}): {_short(error)} {end[0].upper() + end[1:]}.") from error


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".") + "."


class Ids:
    """Ids of one column: integers, texts or UUIDs."""

    KINDS: ClassVar = {
        "smallint": "bigint",
        "integer": "bigint",
        "bigint": "bigint",
        "text": "text",
        "character varying": "text",
        "uuid": "uuid",
    }

    def __init__(self, sql_type: str) -> None:
        if sql_type not in self.KINDS:
            raise StoreError(f"Ids of the type {sql_type} are not supported; known are {', '.join(self.KINDS)}.")
        self.cast = self.KINDS[sql_type]

    def given(self, values: Sequence[Any], what: str = "ids") -> list[Id]:
        """As parameters, in the form in which they come back. Raises DataError."""
        found = checking.ids(values, what)
        wanted = int if self.cast == "bigint" else str
        if bad := [one for one in found if not isinstance(one, wanted) or "\0" in str(one)]:
            raise DataError(f"The {what} of this table are of type {self.cast}, received {checking.shown(bad[0])}.")
        if self.cast != "uuid":
            return found
        try:
            return checking.ids([str(uuid.UUID(str(one))) for one in found], what)
        except ValueError as error:
            raise DataError(f"The {what} of this table are UUIDs: {error}.") from error

    def taken(self, value: Any) -> Id:
        """An id as the store gave it."""
        return str(value) if isinstance(value, uuid.UUID) else value


def vector_of(value: Any) -> Floats:
    """float32 [dim] from what pgvector's package gives, of any of its versions."""
    return np.array(value.to_numpy() if hasattr(value, "to_numpy") else value, dtype=np.float32)
