"""The user's table in PostgreSQL: where it is, its id and vector columns, its vector indexes, and the stamps beside it."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from instar.errors import DataError, StoreError
from instar.interfaces import Generation
from instar.retrieval import checking
from instar.retrieval.postgres_server import LONGEST_NAME, ChangedError, Ids, Server, path, quoted
from instar.retrieval.stamped import Stamp

STAMPS = "instar_generations"
_MADE = "Made by instar: the type of its ids follows the first rows."
_MOST_INDEXED = 2000
"""Dimensions that an index of pgvector can have."""
OPERATORS = {"vector_cosine_ops": "<=>", "vector_ip_ops": "<#>", "vector_l2_ops": "<->"}
"""What the index of a column is made for, and the distance that it can be asked for."""


@dataclass(frozen=True)
class Table:
    """A table and its id column."""

    schema: str
    name: str
    id_column: str
    ids: Ids

    @property
    def path(self) -> str:
        """Schema and table, as a value."""
        return path(self.schema, self.name)

    @property
    def sql(self) -> str:
        """Schema and table, in a statement."""
        return quoted(self.schema, self.name)

    @property
    def id(self) -> str:
        """The id column, in a statement."""
        return quoted(self.id_column)

    @property
    def stamps(self) -> str:
        """The table of stamps, quoted: in the same schema, so that it is dumped and restored with it."""
        return quoted(self.schema, STAMPS)


def standing(stamps: Sequence[Stamp], place: int) -> str:
    """Condition: the vector that counts of the row, `s`, is of that generation."""
    newer = [f"s.{quoted(stamp.column)} IS NULL" for stamp in stamps[place + 1 :]]
    return " AND ".join([f"s.{quoted(stamps[place].column)} IS NOT NULL", *newer])


def held(stamps: Sequence[Stamp]) -> str:
    """Condition: the row, `s`, has a vector."""
    return "(" + " OR ".join(f"s.{quoted(stamp.column)} IS NOT NULL" for stamp in stamps) + ")"


def locate(server: Server, name: str) -> tuple[str, str] | None:
    """Schema and table of a name: as a table of the search path, else as schema.table. None where there is neither."""
    schema, _, table = name.partition(".")
    both = [(schema, table)] if schema and table else []
    for names in ([(name,)] if len(name.encode()) <= LONGEST_NAME or not both else []) + both:
        row = server.run(
            "SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
            "WHERE c.oid = to_regclass(%s) AND c.relkind = 'r'",
            (path(*names),),
        ).fetchone()
        if row:
            return row[0], names[-1]
    return None


def columns(server: Server, schema: str, name: str) -> dict[str, tuple[str, int]]:
    """Column -> its type, and its dimension where it is a vector (−1: any)."""
    rows = server.run(
        "SELECT attname, format_type(atttypid, NULL), atttypmod FROM pg_attribute "
        "WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped",
        (path(schema, name),),
    ).fetchall()
    return {column: (kind, dim) for column, kind, dim in rows}


def table(server: Server, schema: str, name: str, id_column: str | None) -> Table:
    """The table with that id column, or with its primary key. Raises StoreError."""
    keys = [
        row[0]
        for row in server.run(
            "SELECT a.attname FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0] "
            "WHERE i.indrelid = to_regclass(%s) AND i.indisunique AND i.indisvalid AND i.indnkeyatts = 1 "
            "AND i.indpred IS NULL AND i.indexprs IS NULL AND a.attnotnull ORDER BY i.indisprimary DESC",
            (path(schema, name),),
        ).fetchall()
    ]
    found = keys[0] if id_column is None and keys else id_column
    if found is None or found not in keys:
        raise StoreError(
            f"Ids of table '{name}' expect one column that is NOT NULL with a PRIMARY KEY or UNIQUE constraint of its own; "
            f"received {repr(id_column) if id_column else 'none'}, found {', '.join(map(repr, keys)) or 'no such column'}."
        )
    return Table(schema, name, found, Ids(columns(server, schema, name)[found][0]))


def vector_column(server: Server, at: Table, chosen: str | None, generation: Generation) -> str:
    """The column whose vectors are of that generation. Raises StoreError, DataError for vectors that cannot be."""
    known = columns(server, at.schema, at.name)
    vectors = [c for c, (kind, _) in known.items() if kind == "vector"]
    column = vectors[0] if chosen is None and len(vectors) == 1 else chosen
    if column not in vectors:
        raise StoreError(
            f"Table '{at.name}' has the vector columns {', '.join(vectors) or '(none)'} (type vector; halfvec and others are not "
            f"supported); received {chosen!r}. Say which one holds the vectors."
        )
    quote = quoted(column)
    row = server.run(
        f"SELECT min(vector_dims({quote})), max(vector_dims({quote})), min(vector_norm({quote})), max(vector_norm({quote})) "
        f"FROM {at.sql}"
    ).fetchone()
    least, most, shortest, longest = row
    typed = known[column][1]
    least, most = (typed, typed) if typed > 0 else (least, most)
    if least is not None and (least, most) != (generation.dim, generation.dim):
        raise DataError(
            f"Column '{column}' holds vectors of {least} to {most} dimensions; received a generation of {generation.dim}."
        )
    unit = shortest is None or max(abs(shortest - 1), abs(longest - 1)) <= checking.LENGTH
    if shortest is not None and not shortest > 0:
        raise DataError(f"Column '{column}' holds zero vectors, which have no direction: set them to NULL first.")
    if not unit and operator(server, at, column) != "<=>":
        raise DataError(
            f"Vectors in '{column}' have lengths from {shortest:.4g} to {longest:.4g}, and its index compares inner products or "
            "distances; those rank as cosines for unit vectors only. Normalise them, or index them by vector_cosine_ops."
        )
    return column


def operator(server: Server, at: Table, column: str) -> str:
    """The distance that the index of a column serves; cosine where there is none."""
    served = [OPERATORS[o] for _, o, _ in vector_indexes(server, at, column) if o in OPERATORS]
    return "<=>" if not served or "<=>" in served else served[0]


def vector_indexes(server: Server, at: Table, column: str) -> list[tuple[str, str, list[str]]]:
    """(method, operator class, settings) of whole, valid indexes of pgvector over a column."""
    return [
        (method, operators, options or [])
        for method, operators, options in server.run(
            "SELECT m.amname, o.opcname, c.reloptions FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid "
            "JOIN pg_am m ON m.oid = c.relam JOIN pg_opclass o ON o.oid = i.indclass[0] "
            "JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0] "
            "WHERE i.indrelid = to_regclass(%s) AND a.attname = %s AND m.amname IN ('hnsw', 'ivfflat') "
            "AND i.indisvalid AND i.indpred IS NULL ORDER BY c.oid",
            (at.path, column),
        ).fetchall()
    ]


def index_like(server: Server, at: Table, old: str, new: Stamp, methods: tuple[str, ...]) -> None:
    """Index new vectors as the old ones are, without holding up anybody; nothing happens where that was done.

    Beyond 2000 dimensions pgvector indexes nothing, and the new vectors are searched one by one: right, but slow.
    """
    if new.generation.dim > _MOST_INDEXED or vector_indexes(server, at, new.column):
        return
    for method, operators, options in vector_indexes(server, at, old):
        if method in methods:
            settings = ", ".join(f"{key} = '{value}'" for key, value in (option.split("=", 1) for option in options))
            using = f"USING {method} ({quoted(new.column)} {operators})" + (f" WITH ({settings})" if settings else "")
            concurrently(server, at, fitting(f"{at.name}_{new.column}", f"_{method}"), using)
            return


def concurrently(server: Server, at: Table, name: str, using: str) -> None:
    """CREATE INDEX CONCURRENTLY, also where an earlier one was interrupted and left an invalid index."""
    valid = server.run("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%s)", (path(at.schema, name),)).fetchone()
    if valid == (False,):
        server.run(f"DROP INDEX CONCURRENTLY IF EXISTS {quoted(at.schema, name)}", (), "drop an unfinished index")
    if valid != (True,):
        server.run(f"CREATE INDEX CONCURRENTLY {quoted(name)} ON {at.sql} {using}", (), "index the table")


def analyse(server: Server, at: Table, column: str) -> None:
    """Tell the planner how many rows have a vector in the column: without that it takes an empty one for a full one."""
    with contextlib.suppress(StoreError, ChangedError):  # whatever it belongs to has happened already
        server.run(f"ANALYZE {at.sql} ({quoted(column)})", (), "analyse the table")


def make(server: Server, name: str, generation: Generation) -> tuple[str, str]:
    """A new table for vectors of a generation: schema and name. Raises StoreError."""
    with server.transaction("create a table"):
        server.run(f"CREATE TABLE {quoted(name)} (id bigint PRIMARY KEY, vector vector({generation.dim}))", (), "create a table")
        server.run(f"COMMENT ON TABLE {quoted(name)} IS '{_MADE}'")
        schema = server.run("SELECT current_schema()").fetchone()[0]
        stamp(server, table(server, schema, name, "id"), Stamp(generation, "vector"))
    return schema, name


def retype(server: Server, at: Table, sample: object) -> Table:
    """A table that Instar made takes the type of its first ids; any other table stays as it is."""
    wanted = "bigint" if isinstance(sample, int) else "text"
    if at.ids.cast in (wanted, "uuid"):
        return at
    with server.transaction("create a table", changes_table=True):
        made = server.run("SELECT obj_description(to_regclass(%s), 'pg_class')", (at.path,)).fetchone()[0]
        if made != _MADE or server.run(f"SELECT EXISTS (SELECT FROM {at.sql})").fetchone()[0]:
            return at
        server.run(f"ALTER TABLE {at.sql} ALTER COLUMN {at.id} TYPE {wanted} USING NULL", (), "create a table")
    return Table(at.schema, at.name, at.id_column, Ids(wanted))


def stamp(server: Server, at: Table, new: Stamp) -> None:
    """Write a stamp; in a transaction of the caller."""
    server.run(
        f"CREATE TABLE IF NOT EXISTS {at.stamps} (table_name text, number integer, encoder text NOT NULL, dim integer NOT NULL, "
        "name text NOT NULL, vector_column text NOT NULL, id_column text NOT NULL, PRIMARY KEY (table_name, number))",
        (),
        "create the table of stamps",
    )
    of = new.generation
    server.run(
        f"INSERT INTO {at.stamps} VALUES (%s, %s, %s, %s, %s, %s, %s)",
        (at.name, of.number, of.encoder, of.dim, of.name, new.column, at.id_column),
        "stamp the table",
    )


def stamped(server: Server, schema: str, name: str, lock: str = "") -> tuple[list[Stamp], str]:
    """Stamps of a table, the oldest first, and its id column; `lock` is FOR SHARE or FOR UPDATE in a transaction."""
    try:
        rows: list[Any] = server.run(
            f"SELECT number, encoder, dim, name, vector_column, id_column FROM {quoted(schema, STAMPS)} WHERE table_name = %s "
            f"ORDER BY number {lock}",
            (name,),
        ).fetchall()
    except ChangedError:
        return [], ""
    return [Stamp(Generation(r[0], r[1], r[2], r[3]), r[4]) for r in rows], rows[0][5] if rows else ""


def halves(at: Table, newest: Stamp) -> dict[str, str]:
    """Indexes over the ids of rows that have not moved and of those that have: name -> condition.

    As long as one half is small its rows, or that there are none, are found without reading the whole table.
    """
    base, column = f"{at.name}_{newest.column}", quoted(newest.column)
    return {fitting(base, "_left"): f"{column} IS NULL", fitting(base, "_moved"): f"{column} IS NOT NULL"}


def fitting(name: str, end: str) -> str:
    """A name that PostgreSQL does not cut, and that differs where the names differ."""
    if len((name + end).encode()) <= LONGEST_NAME:
        return name + end
    end = f"_{zlib.crc32(name.encode()):08x}{end}"
    return name.encode()[: LONGEST_NAME - len(end)].decode(errors="ignore") + end
