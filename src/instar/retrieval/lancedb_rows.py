"""Rows of a LanceDB table: reading them, adding, moving and removing them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from instar import extras
from instar.errors import DataError
from instar.interfaces import Floats, Id
from instar.retrieval import checking
from instar.retrieval import lancedb_table as tables
from instar.retrieval.lancedb_table import quoted, told
from instar.retrieval.stamped import Stamp, StampedIndex, exists, missing, unstamped


class LanceRows(StampedIndex):
    """What `LanceIndex` does with rows."""

    def __init__(self, location: str, name: str, table: Any, readonly: bool) -> None:
        super().__init__(f"table '{name}' of LanceDB in {location}", readonly)
        self._location, self._name, self._table = location, name, table
        self._pinned = False
        self._indexes: tuple[int, dict[str, tables.VectorIndex]] = (-1, {})
        self._unit: dict[str, bool] = {}
        """Vector column -> whether all of it is of length 1, where that had to be known."""
        for stamp in self.stamps():
            self._writing[stamp.generation.number] = stamp.generation.encoder
        self._id = tables.id_column(table.schema)

    def stamps(self) -> list[Stamp]:
        """See `StampedIndex.stamps`; later calls on the table see the version that this one saw."""
        with told(self.where, "read"):
            if not self._pinned:
                self._table.checkout_latest()
            found = tables.stamps(self._table.schema)
        if not found:
            raise unstamped(self.where)
        return found

    def counts(self) -> dict[int, int]:
        """See `Index.counts`. O(N)."""
        stamps = self.stamps()
        with told(self.where, "count"):
            return {s.generation.number: self._table.count_rows(tables.standing(stamps, i)) for i, s in enumerate(stamps)}

    def ids(self, generation: int, *, after: Id | None = None, limit: int = 10_000) -> list[Id]:
        """See `Index.ids`: in the order of the ids."""
        ordering = extras.require("lancedb.query", "lancedb").ColumnOrdering
        stamps = self.stamps()
        where = tables.standing(stamps, self.place(stamps, generation))
        if limit < 1:  # of which LanceDB would make all rows
            return []
        if after is not None:
            where += f" AND {quoted(self._id)} > {tables.literal(self._given([after])[0])}"
        with told(self.where, "read ids"):
            query = self._table.search().where(where).select([self._id]).order_by([ordering(column_name=self._id)])
            found: list[Id] = query.limit(limit).to_arrow()[self._id].to_pylist()
        return found

    def fetch(self, ids: Sequence[Id]) -> tuple[list[Floats], list[int]]:
        """See `Index.fetch`."""
        stamps = self.stamps()
        names = self._given(list(dict.fromkeys(ids)))
        found = tables.newest(self._rows(names, stamps, [self._id, *(s.column for s in stamps)]), self._id, stamps)
        if lost := [name for name in names if name not in found]:
            raise missing(lost)
        return [found[name][0] for name in ids], [found[name][1] for name in ids]

    def add(self, ids: Sequence[Id], vectors: Floats, generation: int) -> None:
        """See `Index.add`. A row of the application that has no vector yet is given one; other rows are inserted."""
        with self._changing("add rows") as stamps:
            self._retype(checking.ids(ids))
            names = self._given(ids)
            stamp = self.target(stamps, generation, newest=False)
            values = checking.vectors(vectors, stamp.generation.dim, count=len(names))
            if there := self._rows(names, stamps, [self._id])[self._id].to_pylist():
                raise exists(there)
            if names:
                empty = " AND ".join(f"target.{quoted(s.column)} IS NULL" for s in stamps)
                merging = self._table.merge_insert(self._id).when_matched_update_all(where=empty).when_not_matched_insert_all()
                merging.use_index(False).execute(tables.rows(self._table.schema, self._id, names, stamp, values))

    def remove(self, ids: Sequence[Id]) -> None:
        """See `Index.remove`. The rows of the table go, with all their columns."""
        with self._changing("remove rows") as stamps:
            names = self._there(ids, stamps)
            if names:
                self._table.delete(" OR ".join(tables.among(self._id, names)))

    def move(self, ids: Sequence[Id], vectors: Floats, generation: int) -> None:
        """See `Index.move`. One new version; the older vectors stay until `finish`. O(N) to find the rows."""
        with self._changing("move rows") as stamps:
            names = self._there(ids, stamps)
            stamp = self.target(stamps, generation, newest=True)
            values = checking.vectors(vectors, stamp.generation.dim, count=len(names))
            if names:
                # By an index over ids LanceDB would write the whole column anew, without it only these rows.
                merging = self._table.merge_insert(self._id).when_matched_update_all().use_index(False)
                done = merging.execute(tables.rows(self._table.schema, self._id, names, stamp, values))
                if done.num_updated_rows < len(names):
                    raise DataError(
                        f"{len(names) - done.num_updated_rows} of {len(names)} rows were removed by another program while they "
                        "moved; all others have moved. Leave those out that `fetch` no longer knows."
                    )

    @contextlib.contextmanager
    def _changing(self, doing: str) -> Iterator[list[Stamp]]:
        """The stamps, while no other process of Instar changes the table."""
        self.writable()
        with tables.alone(self._location, self._name), told(self.where, doing):
            yield self.stamps()

    def _given(self, values: Sequence[Any]) -> list[Id]:
        return tables.given(values, self._table.schema.field(self._id).type)

    def _retype(self, names: Sequence[Id]) -> None:
        """A table that Instar made takes the type of its first ids; any other table stays as it is."""
        arrow = extras.require("pyarrow", "lancedb")
        schema = self._table.schema
        field = schema.field(self._id)
        text = any(isinstance(name, str) for name in names)
        if names and text == arrow.types.is_integer(field.type) and tables.made_here(field) and self._table.count_rows() == 0:
            kind = arrow.string() if text else arrow.int64()
            schema = schema.set(schema.get_field_index(self._id), arrow.field(self._id, kind, metadata=field.metadata))
            db = extras.require("lancedb", "lancedb").connect(self._location)
            self._table = db.create_table(self._name, schema=schema, mode="overwrite")

    def _rows(self, names: Sequence[Id], stamps: Sequence[Stamp], columns: list[str]) -> Any:
        """Those of these rows that have a vector, as an Arrow table."""
        arrow = extras.require("pyarrow", "lancedb")
        with told(self.where, "read rows"):
            parts = [
                self._table.search().where(f"{where} AND {tables.held(stamps)}").select(columns).to_arrow()
                for where in tables.among(self._id, names)
            ]
            empty = arrow.schema([self._table.schema.field(c).remove_metadata() for c in columns]).empty_table()
            return arrow.concat_tables(parts).combine_chunks() if parts else empty

    def _there(self, ids: Sequence[Id], stamps: Sequence[Stamp]) -> list[Id]:
        names = self._given(ids)
        found = set(self._rows(names, stamps, [self._id])[self._id].to_pylist())
        if lost := [name for name in names if name not in found]:
            raise missing(lost)
        return names
