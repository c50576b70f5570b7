"""A table of LanceDB as the user has it: names, ids, vector columns with their stamps, and one writer at a time."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instar import extras
from instar.errors import DataError, InstarError, StoreError
from instar.interfaces import Floats, Generation, Id
from instar.retrieval import checking
from instar.retrieval.stamped import Stamp, unit

STAMP, ID = b"instar_generation", b"instar_id"
"""Metadata of a vector column: whose vectors it holds, and which column holds their ids."""
UNIT = b"instar_unit"
"""Metadata of a vector column: all its vectors were of length 1 when it was stamped."""
MADE = b"instar_made"
"""Metadata of the id column of a table that Instar made: its type follows the first ids."""
_LISTED = 2000
"""Ids in one condition."""


def quoted(column: str) -> str:
    """A column in a condition. Raises StoreError for one that a condition cannot name."""
    if "`" in column or "." in column or not column:
        raise StoreError(f"LanceDB cannot ask for a column such as {column!r} (no backticks, no dots); rename it.")
    return f"`{column}`"


@contextlib.contextmanager
def told(where: str, doing: str) -> Iterator[None]:
    """Raises StoreError for whatever LanceDB raises: its errors are RuntimeError, ValueError and OSError of many texts."""
    try:
        yield
    except InstarError:
        raise
    except (RuntimeError, ValueError, OSError, KeyError, TypeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].partition(", /")[0].rstrip(".")
        raise StoreError(
            f"{where} failed ({doing}): {reason}. A change of a LanceDB table happens as a whole or not at all: every row is as "
            "it was, unless another process changed it."
        ) from error


def connect(location: str, name: str, create: Any = None) -> Any:
    """A table; `create` is the schema of one that is made where there is none. Raises StoreError."""
    lancedb = extras.require("lancedb", "lancedb")
    if create is None and "://" not in location and not Path(location).is_dir():
        raise StoreError(f"There is no folder {location} with tables of LanceDB.")
    with told(f"LanceDB in {location}", "open"):
        db = lancedb.connect(location)
        try:
            return db.open_table(name)
        except (ValueError, FileNotFoundError):
            if create is None:
                raise
            return db.create_table(name, schema=create)


@contextlib.contextmanager
def alone(location: str, name: str) -> Iterator[None]:
    """One process of Instar at a time changes a table on this machine: LanceDB lets changes pass that exclude one another.

    A table in an object store has no such lock; there, the user lets one process write. Raises StoreError.
    """
    if "://" in location:
        yield
        return
    path = Path(location) / f".instar-{hashlib.sha256(name.encode()).hexdigest()[:16]}.lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise StoreError(f"{path} cannot be written, so nothing was changed: {error.strerror}.") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def stamps(schema: Any) -> list[Stamp]:
    """Stamps in a schema, the oldest first; empty where there are none. Raises StoreError for damaged ones."""
    found = [Stamp.of_json(f.metadata[STAMP], f.name) for f in schema if f.metadata and STAMP in f.metadata]
    return sorted(found, key=lambda stamp: stamp.generation.number)


def id_column(schema: Any) -> str:
    """The id column that the first stamp names. Raises StoreError."""
    first = schema.field(stamps(schema)[0].column).metadata
    name = first.get(ID, b"").decode(errors="replace")
    if name not in schema.names:
        raise StoreError(f"The table has no column '{name}' with the ids of its vectors any more; adopt it again.")
    return name


def metadata(stamp: Stamp, ids: str, unit: bool = True) -> dict[str, str]:
    """What a stamped column carries. unit: whether all its vectors are of length 1."""
    return {STAMP.decode(): stamp.as_json(), ID.decode(): ids, **({UNIT.decode(): "1"} if unit else {})}


def field(stamp: Stamp, ids: str) -> Any:
    """A new column."""
    arrow = extras.require("pyarrow", "lancedb")
    return arrow.field(stamp.column, arrow.list_(arrow.float32(), stamp.generation.dim), metadata=metadata(stamp, ids))


def given(values: Sequence[Any], kind: Any, what: str = "ids") -> list[Id]:
    """Ids of the type of the column. Raises DataError."""
    arrow = extras.require("pyarrow", "lancedb")
    found = checking.ids(values, what)
    wanted = int if arrow.types.is_integer(kind) else str
    if bad := [one for one in found if not isinstance(one, wanted)]:
        raise DataError(f"The {what} of this table are of type {kind}, received {checking.shown(bad[0])}.")
    try:
        arrow.array(found, type=kind)
    except (arrow.ArrowInvalid, OverflowError, UnicodeError) as error:
        raise DataError(f"The {what} of this table are of type {kind}: {error}.") from error
    return found


def rows(schema: Any, ids: str, names: Sequence[Id], stamp: Stamp, vectors: Floats) -> Any:
    """Ids and vectors as an Arrow table of these two columns."""
    arrow = extras.require("pyarrow", "lancedb")
    flat = arrow.array(np.ascontiguousarray(vectors).reshape(-1), type=arrow.float32())
    vector = arrow.FixedSizeListArray.from_arrays(flat, stamp.generation.dim)
    return arrow.table({ids: arrow.array(names, type=schema.field(ids).type), stamp.column: vector})


def standing(stamped: Sequence[Stamp], place: int) -> str:
    """Condition: the vector that counts is of that generation."""
    newer = [f"{quoted(s.column)} IS NULL" for s in stamped[place + 1 :]]
    return " AND ".join([f"{quoted(stamped[place].column)} IS NOT NULL", *newer])


def held(stamped: Sequence[Stamp]) -> str:
    """Condition: the row has a vector."""
    return "(" + " OR ".join(f"{quoted(s.column)} IS NOT NULL" for s in stamped) + ")"


def made_here(ids: Any) -> bool:
    """Whether Instar made the table, by its id column."""
    return bool(ids.metadata and MADE in ids.metadata)


@dataclass(frozen=True)
class VectorIndex:
    """An index over vectors: its kind as LanceDB names it, and what it compares by (cosine, dot or l2)."""

    kind: str
    metric: str


def vector_indexes(table: Any) -> dict[str, VectorIndex]:
    """Column -> its index."""
    return {
        column.strip("`"): VectorIndex(index.index_type, str(table.index_stats(index.name).distance_type).lower())
        for index in table.list_indices()
        for column in index.columns
        if index.index_type.lower().startswith(("ivf", "hnsw"))
    }


def among(ids: str, names: Sequence[Id]) -> Iterator[str]:
    """Conditions that together name these rows."""
    for start in range(0, len(names), _LISTED):
        yield f"{quoted(ids)} IN ({', '.join(literal(name) for name in names[start : start + _LISTED])})"


def literal(name: Id) -> str:
    """An id in a condition."""
    if isinstance(name, int):
        return str(name) if name > -(2**63) else f"({name + 1} - 1)"  # LanceDB reads the digits before the sign
    return "'" + name.replace("'", "''") + "'"


def check_ids(table: Any, ids: str) -> None:
    """Raises DataError unless every row has an id of its own, StoreError for a type that is none."""
    arrow = extras.require("pyarrow", "lancedb")
    kind = table.schema.field(ids).type
    if not (arrow.types.is_integer(kind) or arrow.types.is_string(kind) or arrow.types.is_large_string(kind)):
        raise StoreError(f"Ids expect a column of integers or texts; '{ids}' is of type {kind}.")
    values = table.search().select([ids]).to_arrow()[ids]
    distinct = len(values.unique())
    if values.null_count or distinct < len(values):
        raise DataError(
            f"Column '{ids}' has {len(values) - distinct} repeated and {values.null_count} empty ids in {len(values)} rows."
        )


def check_vectors(table: Any, column: str, generation: Generation, metric: str) -> bool:
    """Whether all are of length 1. Raises StoreError for another type, DataError for vectors that cannot be of the generation."""
    arrow = extras.require("pyarrow", "lancedb")
    kind = table.schema.field(column).type
    if not arrow.types.is_fixed_size_list(kind) or kind.value_type != arrow.float32():
        raise StoreError(f"Vectors expect a column of fixed-size lists of float32; '{column}' is of type {kind}.")
    if kind.list_size != generation.dim:
        raise DataError(
            f"Column '{column}' holds vectors of dimension {kind.list_size}; received a generation of {generation.dim}."
        )
    unit = True
    for lengths in _lengths(table, column, generation.dim):
        if not np.isfinite(lengths).all() or (lengths == 0).any():
            raise DataError(f"Column '{column}' holds vectors that are zero or not finite; set them to null first.")
        unit = unit and bool((np.abs(lengths - 1) <= checking.LENGTH).all())
        if metric != "cosine" and not unit:
            raise DataError(
                f"Vectors in '{column}' are not of length 1, and its index compares by {metric}, which ranks as cosine for unit "
                "vectors only. Normalise them, or index them by cosine."
            )
    return unit


def all_unit(table: Any, column: str) -> bool:
    """Whether all vectors are of length 1: as the stamp says, else read."""
    field = table.schema.field(column)
    if field.metadata and UNIT in field.metadata:
        return True
    return all((np.abs(found - 1) <= checking.LENGTH).all() for found in _lengths(table, column, field.type.list_size))


def _lengths(table: Any, column: str, dim: int) -> Iterator[NDArray[np.float64]]:
    for batch in table.search().where(f"{quoted(column)} IS NOT NULL").select([column]).to_batches():
        yield np.linalg.norm(vectors_of(batch[column], dim).astype(np.float64), axis=1)


def vectors_of(column: Any, dim: int) -> Floats:
    """float32 [N, dim] of an Arrow column without nulls."""
    found: Floats = np.asarray(column.flatten().to_numpy(zero_copy_only=False), dtype=np.float32).reshape(-1, dim)
    return found


def newest(found: Any, ids: str, stamped: Sequence[Stamp]) -> dict[Id, tuple[Floats, int]]:
    """Id -> vector and generation that count, of rows read with all their vectors."""
    arrow = extras.require("pyarrow", "lancedb")
    names = found[ids].to_pylist()
    taken: dict[Id, tuple[Floats, int]] = {}
    for stamp in reversed(stamped):
        column = found[stamp.column].combine_chunks()
        places = [i for i, there in enumerate(column.is_valid().to_pylist()) if there and names[i] not in taken]
        values = vectors_of(column.take(arrow.array(places, type=arrow.int64())), stamp.generation.dim)
        taken |= {names[i]: (unit(row), stamp.generation.number) for i, row in zip(places, values, strict=True)}
    return taken
