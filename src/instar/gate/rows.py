"""Files of rows (JSON lines, CSV, Parquet), read a chunk at a time into columns."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from instar import extras
from instar.errors import DataError
from instar.gate.predictions import Json

KINDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
_CHUNK = 5000
"""Rows that are read at a time."""
_STRUCTURED = ("output", "label", "embedding", "choices")
"""In CSV these may hold JSON lists and objects."""
_SHARED = 64
"""Texts shorter than this are kept once: labels and slices repeat."""
_MARKS = {",", ";", "\t", "|"}
"""What other programs write between columns."""

Chunk = tuple[int, dict[str, list[Json]]]
"""How many rows, and the columns that they have."""

csv.field_size_limit(min(sys.maxsize, 2**31 - 1))


def columns(path: Path) -> dict[str, list[Json]]:
    """All columns of a file, in order, each as long as the file. What a row lacks is None, and so is NaN. Raises DataError."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"There is no file {path}.")
    found: dict[str, list[Json]] = {}
    shared: dict[str, str] = {}
    n = 0
    with _reading(path):
        for size, chunk in _chunks(path):
            for key, values in chunk.items():
                column = found.setdefault(key, [])
                column.extend([None] * (n - len(column)))
                if key == "id":
                    column.extend(values)
                else:
                    column.extend(
                        [
                            (shared.setdefault(v, v) if len(v) < _SHARED else v) if type(v) is str else v if v == v else None
                            for v in values
                        ]
                    )
            n += size
    for column in found.values():
        column.extend([None] * (n - len(column)))
    return found


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no UTF-8 text (byte {error.start}): {error.reason}. Save it as UTF-8.") from error
    except (OSError, MemoryError) as error:
        raise DataError(f"{path} cannot be read: {error or type(error).__name__}.") from error


def _chunks(path: Path) -> Iterator[Chunk]:
    kind = path.suffix.lower()
    if kind == ".parquet":
        return _parquet(path)
    if kind in (".csv", ".tsv"):
        return _csv(path, "\t" if kind == ".tsv" else ",")
    if kind not in KINDS:
        raise DataError(f"{path}: files of the kind '{kind}' are not read; known are {', '.join(KINDS)}.")
    return _json_list(path) if kind == ".json" and _first(path) == "[" else _json_lines(path)


def _turned(rows: list[dict[str, Json]]) -> Chunk:
    names = dict.fromkeys(rows[0]) if rows else {}
    for row in rows:
        if row.keys() - names.keys():
            names |= dict.fromkeys(row)
    return len(rows), {name: [row.get(name) for row in rows] for name in names}


def _first(path: Path) -> str:
    with path.open(encoding="utf-8-sig") as stream:
        return stream.read(4096).lstrip()[:1]


def _json_list(path: Path) -> Iterator[Chunk]:
    """A .json file that is one list of objects, read whole."""
    try:
        rows = json.loads(path.read_text("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is no JSON: {error}.") from error
    if any(not isinstance(row, dict) for row in rows):
        raise DataError(f'{path} holds a list of other things than objects; {{"id": …, "output": …}} is expected.')
    yield _turned(rows)


def _json_lines(path: Path) -> Iterator[Chunk]:
    """Chunks of lines are parsed at once; a chunk that is not as many objects as lines is gone through line by line."""
    number = 0
    with path.open(encoding="utf-8-sig") as stream:
        while lines := list(islice(stream, _CHUNK)):
            try:
                rows = json.loads(f"[{','.join(lines)}]")
            except (ValueError, RecursionError):
                rows = []
            if len(rows) != len(lines) or not all(type(row) is dict for row in rows):
                rows = [row for i, line in enumerate(lines, number + 1) if (row := _line(path, i, line)) is not None]
            number += len(lines)
            yield _turned(rows)


def _line(path: Path, number: int, line: str) -> dict[str, Json] | None:
    if line.isspace():
        return None
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}, line {number} is no JSON: {error}.") from error
    if not isinstance(row, dict):
        raise DataError(
            f'{path}, line {number} holds {type(row).__name__}; one object {{"id": …, "output": …}} a line is expected.'
        )
    return row


def _csv(path: Path, delimiter: str) -> Iterator[Chunk]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, delimiter=delimiter, strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
            if len(set(header)) < len(header):
                raise DataError(f"{path}: the header names a column twice: {', '.join(header)}.")
            if len(header) == 1 and any(mark in header[0] for mark in _MARKS - {delimiter}):
                shown = "tabs" if delimiter == "\t" else f"'{delimiter}'"
                raise DataError(f"{path} has one column, {header[0][:80]!r}. Fields are parted by {shown} here: save it so.")
            while rows := list(islice(_checked(reader, header, path), _CHUNK)):
                yield (
                    len(rows),
                    {
                        name: [_structure(v) if name in _STRUCTURED and v[:1] in ("[", "{") else v or None for v in column]
                        for name, column in zip(header, zip(*rows, strict=True), strict=True)
                    },
                )
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.line_num}: {error}.") from error


def _checked(reader: Any, header: list[str], path: Path) -> Iterator[list[str]]:
    for row in reader:
        if row:
            if len(row) != len(header):
                hint = f" Fields are parted by '{reader.dialect.delimiter}' here." if len(header) == 1 else ""
                raise DataError(f"{path}, line {reader.line_num}: {len(row)} fields for {len(header)} columns.{hint}")
            yield row


def _structure(text: str) -> Json:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text  # text that happens to start with a bracket


def _parquet(path: Path) -> Iterator[Chunk]:
    parquet = extras.require("pyarrow.parquet", "parquet")
    arrow = extras.require("pyarrow", "parquet")
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_CHUNK):
                yield batch.num_rows, {name: _as_json_has_them(values) for name, values in batch.to_pydict().items()}
    except arrow.ArrowException as error:
        raise DataError(f"{path} is no Parquet file, or a damaged one: {error}.") from error


def _as_json_has_them(values: list[Any]) -> list[Json]:
    """Dates, decimals and bytes as texts."""
    kinds = {type(value) for value in values}
    if kinds <= {str, int, float, bool, type(None)}:
        return values
    if kinds & {list, dict}:
        return [json.loads(json.dumps(value, default=str)) for value in values]
    return [value if isinstance(value, (str, int, float, bool, type(None))) else str(value) for value in values]
