"""Rows of a LanceDB table, searched by LanceDB: `lancedb:FOLDER#TABLE`.

Every generation is a column of vectors in the user's own table, whose metadata say which encoder it is from. LanceDB keeps
immutable versions of a table: each change here is one new version, and each search looks at one version.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

from instar import extras
from instar.errors import StoreError
from instar.interfaces import Floats, Fusion, Generation, Hits, Id
from instar.retrieval import checking
from instar.retrieval import lancedb_table as tables
from instar.retrieval.lancedb_rows import LanceRows
from instar.retrieval.lancedb_table import quoted, told
from instar.retrieval.stamped import Stamp, adopted, column_after, hits

_LONGEST_NAME = 200
_TOGETHER = 64
"""Queries in one call."""
_REFINED = 10
"""Times k candidates of a compressed index that are compared by their whole vectors."""


class LanceIndex(LanceRows):
    """Rows of a table, on this machine or in an object store.

    A new generation is a column `<vector>_g1`; until `finish` indexes it as the old one was, its rows are compared one by one (an
    index may be made at any time by LanceDB's own means; one that compares by l2 or dot is asked for vectors of length 1 alone,
    others are compared one by one). Ids are integers or texts. Other programs may go on writing to the table. What returns has
    been written as LanceDB writes: it outlives the process; whether it outlives a loss of power is up to LanceDB and the disk.
    Many small changes leave many small fragments: `finish` compacts them, and `table.optimize()` may be called during a change.
    """

    @classmethod
    def open(cls, location: str, name: str, *, create: Generation | None = None, readonly: bool = False) -> LanceIndex:
        """The stamped table `name` in a folder, or in what else LanceDB connects to.

        create: where there is no such table, make one with columns `id` and `vector` for this generation; one that exists has to
        be of it. Raises StoreError for a table that is not there, GenerationError for one without a stamp.
        """
        schema = None
        if create is not None:
            checking.described(create)
            arrow = extras.require("pyarrow", "lancedb")
            schema = arrow.schema(
                [arrow.field("id", arrow.int64(), metadata={tables.MADE: b"1"}), tables.field(Stamp(create, "vector"), "id")]
            )
        table = tables.connect(location, name, schema)
        if create is not None and tables.stamps(table.schema):
            adopted(tables.stamps(table.schema), create, f"Table '{name}' of LanceDB in {location}")
        return cls(location, name, table, readonly)

    @classmethod
    def adopt(
        cls,
        location: str,
        name: str,
        generation: Generation,
        *,
        id_column: str | None = None,
        vector_column: str | None = None,
    ) -> LanceIndex:
        """Stamp a table that exists: its vectors are of `generation`. Only the metadata of its vector column change.

        id_column: of integers or texts, each once; `id` by default. vector_column: by default the only one of vectors. Reads all
        ids and vectors once. Raises StoreError, DataError for ids and vectors that do not fit, GenerationError for a table
        that is stamped otherwise.
        """
        table = tables.connect(location, name)
        where = f"Table '{name}' of LanceDB in {location}"
        arrow = extras.require("pyarrow", "lancedb")
        with tables.alone(location, name), told(where, "adopt"):
            if not adopted(tables.stamps(table.schema), generation, where):
                fields = {f.name: f.type for f in table.schema}
                vectors = [c for c, kind in fields.items() if arrow.types.is_fixed_size_list(kind)]
                column = vectors[0] if vector_column is None and len(vectors) == 1 else vector_column
                ids = "id" if id_column is None else id_column
                if column is None or column not in fields or ids not in fields:
                    raise StoreError(
                        f"{where} has the columns {', '.join(fields)}, of them vectors: {', '.join(vectors) or 'none'}; received "
                        f"id_column={id_column!r} (default 'id'), vector_column={vector_column!r}. Say which ones to use."
                    )
                tables.check_ids(table, ids)
                indexed = tables.vector_indexes(table).get(column)
                unit = tables.check_vectors(table, column, generation, indexed.metric if indexed else "cosine")
                stamp = tables.metadata(Stamp(generation, column), ids, unit)
                table.update_field_metadata({"path": column, "metadata": stamp})
        return cls(location, name, table, readonly=False)

    def begin(self, generation: Generation) -> None:
        """See `Index.begin`. One new version: the column with its stamp."""
        with self._changing("open a generation") as stamps:
            if self.opens(stamps, generation):
                column = column_after(stamps, generation.number, _LONGEST_NAME)
                if column in self._table.schema.names:
                    raise StoreError(
                        f"{self.where} has a column '{column}' already, where the new vectors would stand; rename it."
                    )
                self._table.add_columns(tables.field(Stamp(generation, column), self._id))

    def nearest(self, generation: int, queries: Floats, k: int) -> Hits:
        """See `Index.nearest`. Where an index gives fewer than k rows, that generation is read exactly."""
        stamps = self.stamps()
        place = self.place(stamps, generation)
        asked = checking.asked(stamps[place].generation, queries, k)
        column, where = stamps[place].column, tables.standing(stamps, place)
        with told(self.where, "search"):
            metric = self._metric(column)
            found = self._found(column, where, asked, k, metric, exact=metric is None)
            if metric is not None and any(len(one) < k for one in found):
                found = self._found(column, where, asked, k, metric, exact=True)
        return hits(found, k, generation)

    def search(self, queries: Mapping[int, Floats], k: int, fusion: Fusion = "cosine") -> Hits:
        """See `Index.search`. All generations in one version of the table."""
        self.stamps()
        self._pinned = True
        try:
            return super().search(queries, k, fusion)
        finally:
            self._pinned = False

    def rollback(self) -> None:
        """See `Index.rollback`. One new version, whatever the number of rows."""
        with self._changing("go back") as stamps:
            self.older(stamps)
            before = " AND ".join(f"{quoted(s.column)} IS NULL" for s in stamps[:-1])
            self.adds_left(self._table.count_rows(f"{quoted(stamps[-1].column)} IS NOT NULL AND {before}"))
            self._table.drop_columns([stamps[-1].column])

    def finish(self) -> None:
        """See `Index.finish`. Indexes the new vectors as the old ones were, drops those, and compacts the table.

        Rows that another program adds with an old vector in that very moment are noticed, and the table is as it was.
        """
        with self._changing("end the older generations") as stamps:
            if len(stamps) == 1:
                return
            self._all_moved(stamps)
            self._index_like(stamps[-2].column, stamps[-1].column)
            stamps = self.stamps()
            self._all_moved(stamps)
            without = self._table.count_rows(f"{quoted(stamps[-1].column)} IS NULL")
            version = self._table.drop_columns([s.column for s in stamps[:-1]]).version
            self._table.checkout_latest()
            added = self._table.count_rows(f"{quoted(stamps[-1].column)} IS NULL") - without
            if added > 0:
                if self._table.version != version:
                    raise StoreError(
                        f"{self.where}: {added} rows were added during finish; version {version - 1} has their vectors."
                    )
                self._table.restore(version - 1)
                self.rows_left(added)
            with contextlib.suppress(RuntimeError, OSError):  # what had to happen has happened; LanceDB may do this at any time
                self._table.optimize()

    def _found(
        self, column: str, where: str, queries: Floats, k: int, metric: str | None, *, exact: bool
    ) -> list[list[tuple[float, Id]]]:
        halved = 2 if metric == "l2" else 1  # LanceDB's l2 is squared: 2 − 2 cos; the others are 1 − cos
        found: list[list[tuple[float, Id]]] = [[] for _ in queries]
        for start in range(0, len(queries), _TOGETHER):
            part = queries[start : start + _TOGETHER]
            # Of one query alone LanceDB gives no column that says which one it was.
            asking = self._table.search(list(part) if len(part) > 1 else part[0], vector_column_name=column)
            asking = asking.distance_type(metric or "cosine").where(where, prefilter=True)
            if exact:
                asking = asking.bypass_vector_index()
            elif metric is not None:
                asking = asking.refine_factor(_REFINED)
            rows = asking.select([self._id, "_distance"]).limit(k).to_arrow()
            places = rows["query_index"].to_pylist() if len(part) > 1 else [0] * len(rows)
            for place, distance, name in zip(places, rows["_distance"].to_pylist(), rows[self._id].to_pylist(), strict=True):
                found[start + place].append((1 - distance / halved, name))
        return found

    def _metric(self, column: str) -> str | None:
        """What the index of a column compares by; None where there is none, or one that does not rank its vectors by cosine."""
        if self._indexes[0] != self._table.version:
            self._indexes = (self._table.version, tables.vector_indexes(self._table))
        found = self._indexes[1].get(column)
        if found is None or found.metric == "cosine":
            return None if found is None else found.metric
        if column not in self._unit:
            self._unit[column] = tables.all_unit(self._table, column)
        return found.metric if self._unit[column] else None

    def _all_moved(self, stamps: Sequence[Stamp]) -> None:
        self.rows_left(self._table.count_rows(f"{quoted(stamps[-1].column)} IS NULL AND {tables.held(stamps)}"))

    def _index_like(self, old: str, new: str) -> None:
        """An index of the same kind and metric, with LanceDB's own settings for the new dimension."""
        made = extras.require("lancedb.index", "lancedb")
        indexed = tables.vector_indexes(self._table)
        if old not in indexed or new in indexed:
            return
        kind = indexed[old].kind
        try:
            self._table.create_index(new, config=getattr(made, kind)(distance_type=indexed[old].metric))
        except (RuntimeError, ValueError, AttributeError) as error:
            raise StoreError(
                f"The new vectors of {self.where} could not be indexed as the old ones are ({kind}): {error}. Index column "
                f"'{new}' yourself, or drop the index of '{old}', and call finish again; nothing has ended."
            ) from error
