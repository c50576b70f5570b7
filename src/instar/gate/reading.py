"""Prediction files and evaluation files: JSON lines, CSV and Parquet, read row by row into columns.

Fields of predictions: `id`, `output`, and where they exist `label`, `score`, `embedding`, `input`, `seconds`, `error`.
Fields of cases: `id`, `input`, and where they exist `label`, `choices`. Every other column is kept as a possible slice.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from instar import extras, files
from instar.errors import DataError
from instar.gate.predictions import Cases, Json, Predictions

KINDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
_OWN = ("id", "output", "label", "score", "embedding", "input", "seconds", "error")
_CHUNK = 5000
"""Rows that are read at a time."""
_STRUCTURED = ("output", "label", "embedding", "choices")
"""In CSV these may hold JSON lists and objects."""

csv.field_size_limit(min(sys.maxsize, 2**31 - 1))


def predictions(path: Path, name: str = "") -> Predictions:
    """Read a prediction file. Raises DataError with the line of what is wrong."""
    path = Path(path)
    columns = _columns(path)
    if not columns:
        raise DataError(f"{path} holds no item.")
    if "output" not in columns and "score" not in columns:
        raise DataError(f"{path} has the columns {', '.join(columns)}; predictions need 'id' and 'output' (or 'id' and 'score').")
    ids = _ids(columns, path)
    scores = None if "score" not in columns else np.array([_number(v, path, i) for i, v in enumerate(columns["score"])])
    outputs = columns.get("output")
    if outputs is None:  # a judge's scores alone
        outputs = [None if v is None or v == "" else v for v in columns["score"]]
    return Predictions(
        name=name or path.name,
        ids=ids,
        outputs=[None if _absent(v) else v for v in outputs],
        labels=columns.get("label"),
        scores=scores,
        embeddings=_embeddings(columns["embedding"], path) if "embedding" in columns else None,
        inputs=[_text(v) for v in columns["input"]] if "input" in columns else None,
        seconds=np.array([_number(v, path, i) for i, v in enumerate(columns["seconds"])]) if "seconds" in columns else None,
        errors={i: str(v) for i, v in zip(ids, columns["error"], strict=True) if v} if "error" in columns else {},
        columns={key: values for key, values in columns.items() if key not in _OWN},
        facts={"source": str(path), "sha256": sha256(path), "bytes": path.stat().st_size},
    )


def cases(path: Path, *, examples: Path | None = None, documents: Path | None = None) -> Cases:
    """Read an evaluation file, and where given labelled examples (`input`, `label`) and documents (`id`, `text`)."""
    path = Path(path)
    columns = _columns(path)
    for need in ("id", "input"):
        if need not in columns:
            raise DataError(f"{path} has the columns {', '.join(columns) or 'none'}; an evaluation file needs 'id' and 'input'.")
    choices = columns.get("choices")
    if choices is not None:
        for i, row in enumerate(choices):
            if not isinstance(row, list) or len(row) < 2:
                raise DataError(
                    f"{path}, item {i + 1}: 'choices' expects a list of two answers or more, received {str(row)[:80]!r}."
                )
        choices = [[_text(c) for c in row] for row in choices]
    labels = columns.get("label")
    if labels is not None and choices is not None:
        labels = [_chosen(label, row, path, i) for i, (label, row) in enumerate(zip(labels, choices, strict=True))]
    return Cases(
        name=path.name,
        ids=_ids(columns, path),
        inputs=[_text(v) for v in columns["input"]],
        labels=labels,
        choices=choices,
        columns={k: v for k, v in columns.items() if k not in ("id", "input", "label", "choices")},
        examples=_pairs(examples, "input", "label") if examples else (),
        documents=[(_text(i), _text(t)) for i, t in _pairs(documents, "id", "text")] if documents else (),
    )


def write(path: Path, version: Predictions) -> None:
    """Write predictions as JSON lines that `predictions` reads back. Raises OutputError."""
    columns: dict[str, Sequence[Any]] = {"id": version.ids}
    if version.inputs is not None:
        columns["input"] = version.inputs
    columns["output"] = version.outputs
    if version.labels is not None:
        columns["label"] = version.labels
    for name, values in (("score", version.scores), ("seconds", version.seconds)):
        if values is not None:
            columns[name] = [None if math.isnan(v) else float(v) for v in values]
    if version.embeddings is not None:
        columns["embedding"] = [[float(f"{x:.6g}") for x in row] for row in version.embeddings]
    if version.errors:
        columns["error"] = [version.errors.get(i) for i in version.ids]
    columns |= version.columns
    write_rows(path, columns)


def write_rows(path: Path, columns: dict[str, Sequence[Any]]) -> None:
    """Write columns as JSON lines, at once."""
    names = list(columns)
    lines = (json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False) for row in zip(*columns.values(), strict=True))
    files.write(path, "\n".join(lines) + "\n")


def sha256(path: Path) -> str:
    """The hash of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _columns(path: Path) -> dict[str, list[Json]]:
    """All columns of a file, each as long as the file; a field that a row lacks is None."""
    if not path.is_file():
        raise DataError(f"There is no file {path}.")
    columns: dict[str, list[Json]] = {}
    shared: dict[str, str] = {}  # equal texts are kept once: labels and slices repeat
    n = 0
    with _reading(path):
        for rows in _chunks(path):
            for row in rows:
                for key in row.keys() - columns.keys():
                    columns[key] = [None] * n
            for key, column in columns.items():
                values = [row.get(key) for row in rows]
                if key != "id":
                    values = [shared.setdefault(v, v) if type(v) is str and len(v) < 64 else v for v in values]
                column.extend(values)
            n += len(rows)
    return columns


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no UTF-8 text (byte {error.start}): {error.reason}. Save it as UTF-8.") from error
    except (OSError, MemoryError) as error:
        raise DataError(f"{path} cannot be read: {error or type(error).__name__}.") from error


def _chunks(path: Path) -> Iterator[list[dict[str, Json]]]:
    kind = path.suffix.lower()
    if kind == ".parquet":
        return _parquet(path)
    if kind in (".csv", ".tsv"):
        return _batched(_csv(path, "\t" if kind == ".tsv" else ","))
    if kind not in KINDS:
        raise DataError(f"{path}: files of the kind '{kind}' are not read; known are {', '.join(KINDS)}.")
    return _json_list(path) if kind == ".json" and _first(path) == "[" else _json_lines(path)


def _first(path: Path) -> str:
    with path.open(encoding="utf-8-sig") as stream:
        return stream.read(4096).lstrip()[:1]


def _json_list(path: Path) -> Iterator[list[dict[str, Json]]]:
    """A .json file that is one list of objects, read whole."""
    try:
        rows = json.loads(path.read_text("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is no JSON: {error}.") from error
    if any(not isinstance(row, dict) for row in rows):
        raise DataError(f'{path} holds a list of other things than objects; {{"id": …, "output": …}} is expected.')
    yield from _batched(iter(rows))


def _batched(rows: Iterator[dict[str, Json]]) -> Iterator[list[dict[str, Json]]]:
    while chunk := list(islice(rows, _CHUNK)):
        yield chunk


def _json_lines(path: Path) -> Iterator[list[dict[str, Json]]]:
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
            yield rows


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


def _csv(path: Path, delimiter: str) -> Iterator[dict[str, Json]]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, delimiter=delimiter, strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
            if len(set(header)) < len(header):
                raise DataError(f"{path}: the header names a column twice: {', '.join(header)}.")
            for values in reader:
                if not values:
                    continue
                if len(values) != len(header):
                    raise DataError(f"{path}, line {reader.line_num}: {len(values)} fields for {len(header)} columns.")
                yield {name: _cell(name, value) for name, value in zip(header, values, strict=True)}
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.line_num}: {error}.") from error


def _cell(name: str, value: str) -> Json:
    """A CSV field: text, absent where it is empty, and a list or object where a structured column holds one."""
    if value == "":
        return None
    if name in _STRUCTURED and value[:1] in "[{":
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value  # text that happens to start with a bracket
    return value


def _parquet(path: Path) -> Iterator[list[dict[str, Json]]]:
    parquet = extras.require("pyarrow.parquet", "parquet")
    arrow = extras.require("pyarrow", "parquet")
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_CHUNK):
                yield batch.to_pylist()
    except arrow.ArrowException as error:
        raise DataError(f"{path} is no Parquet file, or a damaged one: {error}.") from error


def _ids(columns: dict[str, list[Json]], path: Path) -> list[str]:
    if "id" not in columns:
        raise DataError(f"{path} has no column 'id' (found: {', '.join(columns)}). It tells which answers belong together.")
    for i, value in enumerate(columns["id"]):
        if _absent(value) or isinstance(value, (list, dict, bool)):
            raise DataError(f"{path}, item {i + 1}: an id is a text or a number, received {str(value)[:60]!r}.")
    return [value if type(value) is str else _text(value) for value in columns["id"]]


def _absent(value: Json) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _text(value: Json) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _number(value: Json, path: Path, row: int) -> float:
    if value is None or value == "":
        return math.nan
    try:
        if isinstance(value, (list, dict)):
            raise TypeError
        return float(value)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{path}, item {row + 1}: a number is expected in 'score' and 'seconds', received {str(value)[:60]!r}."
        ) from error


def _embeddings(rows: list[Json], path: Path) -> Any:
    try:
        found = np.asarray(rows, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{path}: the column 'embedding' must hold lists of numbers of one length in every row ({error})."
        ) from error
    if found.ndim != 2 or not np.isfinite(found).all():
        raise DataError(f"{path}: the column 'embedding' must hold finite numbers [items, width]; received shape {found.shape}.")
    return found


def _chosen(label: Json, choices: list[str], path: Path, row: int) -> Json:
    """A label of multiple choice as the text of the right answer; an index or a letter (A, B …) is looked up."""
    if isinstance(label, str) and label in choices:
        return label
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(choices):
        return choices[label]
    if isinstance(label, str) and len(label) == 1 and "A" <= label < chr(ord("A") + len(choices)):
        return choices[ord(label) - ord("A")]
    if isinstance(label, str) and label.isdigit() and int(label) < len(choices):
        return choices[int(label)]
    raise DataError(
        f"{path}, item {row + 1}: the label {label!r} is none of the choices {choices}, nor an index or letter of one."
    )


def _pairs(path: Path, first: str, second: str) -> list[tuple[Any, Any]]:
    columns = _columns(Path(path))
    if first not in columns or second not in columns:
        raise DataError(f"{path} has the columns {', '.join(columns) or 'none'}; '{first}' and '{second}' are expected.")
    return list(zip(columns[first], columns[second], strict=True))
