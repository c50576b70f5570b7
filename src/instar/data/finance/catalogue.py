"""The catalogue of a store: which Parquet files are its tables, and which run made each from what.

A stage cuts its work into cells (a day of a source, a month, a symbol). A cell is a function of its inputs alone; its key is

    input hash = SHA-256(stage, cell, code of the stage, parameters, hashes of all inputs)

and a cell whose key is the one of last time is not computed again. Files are named by their own SHA-256: written under another
name, flushed, renamed. Then one transaction of DuckDB puts the new files in the place of the old ones, the row of `run` last.
Killed at any moment, a cell has happened or it has not, and the next run does what is missing.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from instar import extras, files
from instar.data.finance import tables
from instar.data.finance.parts import Parts
from instar.errors import DataError, OutputError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS part (
    build VARCHAR, stage VARCHAR, cell VARCHAR, name VARCHAR, sha256 VARCHAR, n_rows BIGINT);
CREATE TABLE IF NOT EXISTS run (
    build VARCHAR, stage VARCHAR, cell VARCHAR, input_hash VARCHAR, output_hash VARCHAR, status VARCHAR,
    started TIMESTAMPTZ, finished TIMESTAMPTZ);
"""
_EVERY = 64
"""Cells that are committed together: a kill loses the work of no more."""


@dataclass(frozen=True)
class Cell:
    """Work to be done, and how: `compute` gives the rows of each table."""

    key: str
    inputs: str
    """Hash of everything that decides the outcome."""
    compute: Callable[[], Mapping[str, Any]]
    """Arrow tables by name."""


@dataclass
class Done:
    """What a stage did."""

    stage: str
    made: int = 0
    kept: int = 0
    gone: int = 0


class Catalogue:
    """`catalogue.duckdb` and `tables/` of a store. Use it as a context; a writer holds the store's lock.

    Raises DataError where the store is in use or damaged, MissingExtraError.
    """

    def __init__(self, folder: Path, *, readonly: bool = False) -> None:
        self.folder, self.readonly = folder, readonly
        self.path = folder / "catalogue.duckdb"
        self._duckdb = extras.require("duckdb", "finance")
        self.files = Parts(folder)
        self._lock: int | None = None
        if readonly and not self.path.is_file():
            raise DataError(f"{folder} holds no store of news and prices: there is no {self.path.name}.")
        if not readonly:
            files.folder(folder)
            self._lock = _locked(folder / "lock")
        try:
            if not self.path.is_file():
                self._create()
            self.db = self._duckdb.connect(str(self.path), read_only=readonly, config={"threads": 1})
        except self._duckdb.Error as error:
            self._unlock()
            said = " ".join(str(error).split())[:200]
            raise DataError(
                f"{self.path} cannot be opened: {said}. Another process may be writing; wait, or restore it."
            ) from error

    def __enter__(self) -> Catalogue:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the store."""
        try:
            self.db.close()
        finally:
            self._unlock()

    def stage(self, build: str, name: str, cells: Iterable[Cell]) -> Done:
        """Bring a stage up to date: compute what is new or changed, keep the rest, drop cells that are no more.

        Raises OutputError where the disk is full; whatever was committed before stands.
        """
        asked = "SELECT cell, input_hash FROM run WHERE build = ? AND stage = ?"
        known = dict(self.db.execute(asked, [build, name]).fetchall())
        done, waiting, wanted = Done(name), list[tuple[Any, ...]](), set[str]()
        others = [other for other in self.builds() if other != build]
        for cell in cells:
            wanted.add(cell.key)
            if known.get(cell.key) == cell.inputs:
                done.kept += 1
                continue
            started = datetime.now(UTC)
            parts = self._made(name, cell.key, cell.inputs) if others else []
            parts = parts or [(table, *self.files.write(table, value)) for table, value in sorted(cell.compute().items())]
            waiting.append((cell, parts, started))
            done.made += 1
            if len(waiting) >= _EVERY:
                self._commit(build, name, waiting)
                waiting = []
        gone = sorted(known.keys() - wanted)
        self._commit(build, name, waiting, gone)
        done.gone = len(gone)
        return done

    def parts(self, build: str, table: str, stage: str) -> dict[str, str]:
        """Cell of a stage -> SHA-256 of its part of a table."""
        asked = "SELECT cell, sha256 FROM part WHERE build = ? AND name = ? AND stage = ? ORDER BY cell"
        return dict(self.db.execute(asked, [build, table, stage]).fetchall())

    def shas(self, build: str, table: str) -> list[str]:
        """The parts of a table, in the order of stages and cells."""
        asked = "SELECT sha256 FROM part WHERE build = ? AND name = ? ORDER BY stage, cell"
        return [row[0] for row in self.db.execute(asked, [build, table]).fetchall()]

    def read(self, table: str, shas: Iterable[str], columns: Sequence[str] | None = None) -> Any:
        """See `Parts.read`."""
        return self.files.read(table, shas, columns)

    def builds(self) -> list[str]:
        """The builds that the store holds: "main", and one for each date as of which something was asked."""
        return [row[0] for row in self.db.execute("SELECT DISTINCT build FROM run ORDER BY build").fetchall()]

    def hashes(self, build: str = "main") -> dict[str, str]:
        """Table -> hash of what stands in it: of cells and their files, so that equal tables have equal hashes."""
        rows = self.db.execute("SELECT name, stage, cell, sha256 FROM part WHERE build = ? ORDER BY ALL", [build]).fetchall()
        found: dict[str, list[tuple[str, ...]]] = {}
        for name, *rest in rows:
            found.setdefault(name, []).append(tuple(rest))
        return {name: tables.digest(parts) for name, parts in found.items()}

    def problems(self) -> Iterator[str]:
        """Parts that are gone or were changed."""
        for name, sha256 in self.db.execute("SELECT DISTINCT name, sha256 FROM part ORDER BY ALL").fetchall():
            if problem := self.files.problem(name, sha256):
                yield problem

    def tidy(self) -> None:
        """Files that no build uses go, with what killed writers left; the views of the tables of "main" are made anew."""
        used = set(self.db.execute("SELECT DISTINCT name, sha256 FROM part").fetchall())
        for path in (self.folder / "tables").glob("*/*"):
            if (path.parent.name, path.stem) not in used or path.suffix != ".parquet":
                path.unlink(missing_ok=True)
        try:
            for table in tables.names():
                self._view(table, [self.files.path(table, sha) for sha in self.shas("main", table)])
        except self._duckdb.Error as error:
            raise self._full(error) from error

    def _view(self, table: str, paths: Sequence[Path]) -> None:
        """For whoever opens the catalogue with DuckDB: the table, read from its parts."""
        if not paths:
            self.db.execute(f'DROP VIEW IF EXISTS "{table}"')
            return
        listed = ", ".join("'" + str(path.absolute()).replace("'", "''") + "'" for path in paths)
        self.db.execute(f'CREATE OR REPLACE VIEW "{table}" AS SELECT * FROM read_parquet([{listed}])')

    def _create(self) -> None:
        """An empty catalogue, under another name until it is whole: half a one cannot be opened."""
        made = self.path.with_name(".catalogue.new")
        try:
            for path in self.folder.glob(f"{made.name}*"):
                path.unlink()
            with self._duckdb.connect(str(made)) as db:
                db.execute(_SCHEMA)
                db.execute("CHECKPOINT")  # closing alone keeps silent about a full disk
            with made.open("rb") as file:
                os.fsync(file.fileno())
            made.replace(self.path)
        except (self._duckdb.Error, OSError) as error:
            self._unlock()
            raise self._full(error) from error

    def _full(self, error: Exception) -> OutputError:
        said = " ".join(str(error).split())[:200]
        return OutputError(f"Cannot write {self.path}: {said}. What was committed before stands; run again when there is room.")

    def _made(self, stage: str, cell: str, inputs: str) -> list[tuple[str, str, int]]:
        """What another build computed from the same inputs."""
        found = self.db.execute(
            "SELECT p.name, p.sha256, p.n_rows FROM run r JOIN part p USING (build, stage, cell) "
            "WHERE r.stage = ? AND r.cell = ? AND r.input_hash = ? ORDER BY ALL",
            [stage, cell, inputs],
        ).fetchall()
        return [tuple(row) for row in dict.fromkeys(found) if self.files.path(row[0], row[1]).is_file()]

    def _commit(self, build: str, stage: str, made: Sequence[tuple[Any, ...]], gone: Sequence[str] = ()) -> None:
        if not made and not gone:
            return
        where = "build = ? AND stage = ? AND list_contains(?, cell)"
        try:
            self.db.execute("BEGIN")
            for table in ("part", "run"):
                self.db.execute(f"DELETE FROM {table} WHERE {where}", [build, stage, [*gone, *(cell.key for cell, _, _ in made)]])
            self._insert("part", [[build, stage, cell.key, *part] for cell, parts, _ in made for part in parts])
            now = datetime.now(UTC)
            done = ((cell, tables.digest(parts), started) for cell, parts, started in made)
            self._insert("run", [[build, stage, cell.key, cell.inputs, out, "done", started, now] for cell, out, started in done])
            self.db.execute("COMMIT")
        except self._duckdb.Error as error:
            raise self._full(error) from error

    def _insert(self, table: str, rows: Sequence[Sequence[Any]]) -> None:
        if rows:
            places = ", ".join(["(" + ", ".join("?" * len(rows[0])) + ")"] * len(rows))
            self.db.execute(f"INSERT INTO {table} VALUES {places}", [value for row in rows for value in row])

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


@contextmanager
def opened(folder: Path) -> Iterator[Catalogue]:
    """A catalogue to read from."""
    with Catalogue(folder, readonly=True) as catalogue:
        yield catalogue


def _locked(path: Path) -> int:
    try:
        lock = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
    except OSError as error:
        raise OutputError(f"Cannot write {path}: {error.strerror}.") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise DataError(f"{path.parent} is being written by another process. Wait until it has ended.") from error
    return lock
