"""Vectors in files: .npy, .npz and .parquet, each checked row by row when it is read. Nothing is unpickled."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import read_array_header_1_0, read_array_header_2_0, read_magic

from instar import extras, files
from instar.errors import DataError, ShapeError
from instar.interfaces import Floats

KINDS = (".npy", ".npz", ".parquet")
_BLOCK = 65_536
"""Rows that are checked at a time, so that a mapped file is never in memory twice."""
_UNIT = 1e-3
"""A length this near to 1 is 1, written with few digits."""
_EXACT = 1e-6


def vectors(path: str | Path) -> tuple[list[str] | None, Floats, dict[str, Any]]:
    """(ids, unit vectors [N, D], facts) of a file.

    .npy: a table [N, D]; it is mapped, not read, where it holds unit vectors in float32. .npz: `vectors` (or the only table there
    is) and optionally `ids`. .parquet: `id` and `embedding` (or the only column of lists). Other lengths than 1 are made 1, which
    the facts say. Raises DataError for a file that is damaged, pickled or of another kind, and for rows that are NaN, zero, of
    another width, or have an id twice.
    """
    path = Path(path).expanduser()
    kind = path.suffix.lower()
    if kind not in KINDS:
        raise DataError(f"{path} is no file of vectors; those end in {', '.join(KINDS)}.")
    if not path.is_file():
        raise DataError(f"There is no file {path}.")
    try:
        names, table = {".npy": _npy, ".npz": _npz, ".parquet": _parquet}[kind](path)
        facts = {"source": path.name, "bytes": path.stat().st_size, "dtype": str(table.dtype)}
        ids = None if names is None else _ids(names, len(table), path)
        found, lengths = _units(table, path)
    except zipfile.BadZipFile as error:
        raise DataError(f"{path} is damaged or cut short, or no .npz at all: {error}.") from error
    except (OSError, EOFError, MemoryError) as error:
        raise DataError(f"{path} cannot be read: {error or type(error).__name__}.") from error
    low, high = lengths
    if max(high - 1, 1 - low) > _UNIT:
        facts["normalised"] = f"lengths were {low:.4g} to {high:.4g} and are now 1"
    return ids, found, {**facts, "rows": len(found), "dim": int(found.shape[1])}


def place(path: str | Path) -> Path:
    """Where vectors may be written, found out before the work. Raises DataError for another kind of file, OutputError."""
    path = Path(path).expanduser()
    if path.suffix.lower() not in KINDS:
        raise DataError(f"{path} is no file of vectors; those end in {', '.join(KINDS)}.")
    return files.target(path)


def write(path: str | Path, ids: Sequence[str] | None, vectors: Floats) -> None:
    """Write vectors [N, D] in float32, at once; a .npy has no place for ids and keeps the order alone.

    Raises DataError for another kind of file, ShapeError for other shapes, OutputError.
    """
    path, table = place(path), np.ascontiguousarray(vectors, np.float32)
    if table.ndim != 2 or (ids is not None and len(ids) != len(table)):
        raise ShapeError(f"Vectors expect a table [N, D] and N ids; received {list(table.shape)} and {len(ids or ())} ids.")
    stream = io.BytesIO()
    kind = path.suffix.lower()
    if kind == ".npy":
        np.save(stream, table, allow_pickle=False)
    elif kind == ".npz":
        named = {} if ids is None else {"ids": np.array([str(one) for one in ids], dtype=np.str_)}
        np.savez(stream, allow_pickle=False, vectors=table, **named)
    else:
        arrow, parquet = extras.require("pyarrow", "parquet"), extras.require("pyarrow.parquet", "parquet")
        lists = arrow.FixedSizeListArray.from_arrays(arrow.array(table.ravel()), table.shape[1])
        named = {} if ids is None else {"id": arrow.array([str(one) for one in ids], arrow.string())}
        parquet.write_table(arrow.table({**named, "embedding": lists}), stream)
    files.write(path, stream.getvalue())


def _npy(path: Path) -> tuple[None, Any]:
    with path.open("rb") as stream:
        _header(stream, path)
    try:
        return None, np.load(path, mmap_mode="c", allow_pickle=False)
    except ValueError as error:
        raise DataError(f"{path} is damaged or cut short: {error}.") from error


def _npz(path: Path) -> tuple[Any, Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                with archive.open(member) as stream:
                    _header(stream, f"{path}: {member}")
        with np.load(path, allow_pickle=False) as found:
            tables = [name for name in found.files if name != "ids"]
            if "vectors" not in tables and len(tables) != 1:
                raise DataError(
                    f"{path} holds {', '.join(found.files) or 'nothing'}; 'vectors' and optionally 'ids' are expected."
                )
            table = found["vectors" if "vectors" in tables else tables[0]]
            return (found["ids"] if "ids" in found.files else None), table
    except (ValueError, zlib.error) as error:
        raise DataError(f"{path} is damaged or cut short: {error}.") from error


def _header(stream: Any, where: object) -> None:
    """Refuse what only unpickling could read, and what is no array, before anything of it is read."""
    try:
        version = read_magic(stream)
        read = read_array_header_1_0 if version == (1, 0) else read_array_header_2_0
        _, _, dtype = read(stream)
    except ValueError as error:
        raise DataError(f"{where} is no array of numpy: {error}.") from error
    if dtype.hasobject:
        raise DataError(f"{where} holds pickled objects, which may run code when read. Save numbers (and ids as texts).")


def _parquet(path: Path) -> tuple[Any, Any]:
    arrow, parquet = extras.require("pyarrow", "parquet"), extras.require("pyarrow.parquet", "parquet")
    compute = extras.require("pyarrow.compute", "parquet")
    try:
        table = parquet.read_table(path)
    except arrow.ArrowException as error:
        raise DataError(f"{path} is no Parquet file, or a damaged one: {error}.") from error
    kinds = (arrow.types.is_list, arrow.types.is_large_list, arrow.types.is_fixed_size_list)
    lists = [f.name for f in table.schema if any(kind(f.type) for kind in kinds)]
    name = "embedding" if "embedding" in lists else lists[0] if len(lists) == 1 else ""
    if not name:
        raise DataError(f"{path} has the columns {', '.join(table.column_names)}; 'embedding', a list of numbers, is expected.")
    column = table.column(name).combine_chunks()
    if column.null_count:
        empty = int(np.flatnonzero(np.asarray(column.is_null()))[0])
        raise DataError(f"{path}, row {empty + 1} of {len(column)} has no vector. Leave the row out.")
    widths = np.asarray(compute.list_value_length(column))
    if len(widths) and (bad := np.flatnonzero(widths != widths[0])).size:
        raise DataError(f"{path}, row {bad[0] + 1}: {widths[bad[0]]} numbers; the first row has {widths[0]}.")
    flat = column.flatten()
    if not (arrow.types.is_floating(flat.type) or arrow.types.is_integer(flat.type)):
        raise DataError(f"{path}: '{name}' holds lists of {flat.type}, not of numbers.")
    values = flat.to_numpy(zero_copy_only=False)
    ids = table.column("id").to_pylist() if "id" in table.column_names else None
    return ids, values.reshape(len(widths), -1) if len(widths) else values.reshape(0, 0)


def _units(table: Any, path: Path) -> tuple[Floats, tuple[float, float]]:
    """The rows with length 1, and the smallest and largest length that there was."""
    if table.ndim != 2 or table.dtype.kind not in "fiu" or not table.size:
        raise DataError(f"{path} holds {list(table.shape)} of {table.dtype}; numbers [rows, width] are expected.")
    low, high = np.inf, 0.0
    whole = table.dtype == np.float32  # as they lie there, until a row has another length
    found = np.asarray(table) if whole else np.empty(table.shape, np.float32)
    for start, block in _blocks(table):
        with np.errstate(over="ignore", invalid="ignore"):
            lengths = np.sqrt(np.einsum("nd,nd->n", block, block))
        bad = np.flatnonzero(~np.isfinite(lengths) | (lengths == 0))
        if len(bad):
            raise DataError(f"{path}, row {start + bad[0] + 1} is {'zero' if lengths[bad[0]] == 0 else 'NaN or infinite'}.")
        low, high = min(low, float(lengths.min())), max(high, float(lengths.max()))
        if whole and np.abs(lengths - 1).max() > _EXACT:
            whole, found = False, np.array(table)
        if not whole:
            found[start : start + len(block)] = block / lengths[:, None]
    return found, (low, high)


def _blocks(table: Any) -> Iterator[tuple[int, Any]]:
    for start in range(0, len(table), _BLOCK):
        yield start, np.asarray(table[start : start + _BLOCK], np.float64)


def _ids(values: Any, rows: int, path: Path) -> list[str]:
    if isinstance(values, np.ndarray) and (values.ndim != 1 or values.dtype.kind not in "USiu"):
        raise DataError(f"{path}: ids are {list(values.shape)} of {values.dtype}; one text or whole number a row is expected.")
    if len(values) != rows:
        raise DataError(f"{path} holds {len(values)} ids for {rows} vectors.")
    places: dict[str, int] = {}
    for place, value in enumerate(values.tolist() if isinstance(values, np.ndarray) else values):
        name = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
        if value is None or not name or isinstance(value, (bool, float, list, dict)):
            raise DataError(f"{path}, row {place + 1}: an id is a text or a whole number, received {value!r}.")
        if places.setdefault(name, place) != place:
            raise DataError(f"{path}, row {place + 1}: the id {name!r} stands in row {places[name] + 1} too.")
    return list(places)
