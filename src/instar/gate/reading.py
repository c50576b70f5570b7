"""Prediction files and evaluation files.

Fields of predictions: `id`, `output`, and where they exist `label`, `score`, `embedding`, `input`, `seconds`, `error`.
Fields of cases: `id`, `input`, and where they exist `label`, `choices`. Every other column is kept as a possible slice, but
for those that a prediction file calls its own: an `output` beside the items is another's answer.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from instar import files
from instar.errors import DataError
from instar.gate import rows
from instar.gate.predictions import Cases, Json, Predictions
from instar.gate.values import as_json, choice

KINDS = rows.KINDS
_OWN = ("id", "output", "label", "score", "embedding", "input", "seconds", "error")
_EMPTY = "the field is empty (CSV cannot tell an empty answer from none; JSON lines can)"


def predictions(path: Path, name: str = "") -> Predictions:
    """Read a prediction file. Raises DataError with the line of what is wrong."""
    path = Path(path)
    columns = rows.columns(path)
    if not columns:
        raise DataError(f"{path} holds no item.")
    if "output" not in columns and "score" not in columns:
        raise DataError(f"{path} has the columns {', '.join(columns)}; predictions need 'id' and 'output' (or 'id' and 'score').")
    ids = _ids(columns, path)
    scores = None if "score" not in columns else np.array([_number(v, path, i) for i, v in enumerate(columns["score"])])
    outputs, labels, told = columns.get("output"), columns.get("label"), columns.get("error")
    if outputs is None:  # a judge's scores alone: labels say nothing about them but are a slice
        outputs, labels = columns["score"], None
    if told is not None:  # where there is an error, an empty text is no answer
        outputs = [None if o == "" and e else o for o, e in zip(outputs, told, strict=True)]
    errors = {} if told is None else {i: str(v) for i, v in zip(ids, told, strict=True) if v}
    if path.suffix.lower() in (".csv", ".tsv"):
        errors = dict.fromkeys((i for i, o in zip(ids, outputs, strict=True) if o is None), _EMPTY) | errors
    return Predictions(
        name=name or path.name,
        ids=ids,
        outputs=outputs,
        labels=labels,
        scores=scores,
        embeddings=_embeddings(columns["embedding"], path) if "embedding" in columns else None,
        inputs=[_text(v) for v in columns["input"]] if "input" in columns else None,
        seconds=np.array([_number(v, path, i) for i, v in enumerate(columns["seconds"])]) if "seconds" in columns else None,
        errors=errors,
        columns={key: v for key, v in columns.items() if key not in _OWN or (key == "label" and labels is None)},
        facts={"source": str(path), "sha256": sha256(path), "bytes": path.stat().st_size},
    )


def cases(path: Path, *, examples: Path | None = None, documents: Path | None = None) -> Cases:
    """Read an evaluation file, and where given labelled examples (`input`, `label`) and documents (`id`, `text`)."""
    path = Path(path)
    columns = rows.columns(path)
    for need in ("id", "input"):
        if need not in columns:
            raise DataError(f"{path} has the columns {', '.join(columns) or 'none'}; an evaluation file needs 'id' and 'input'.")
    choices = columns.get("choices")
    if choices is not None:
        for i, one in enumerate(choices):
            if not isinstance(one, list) or len(one) < 2:
                raise DataError(
                    f"{path}, item {i + 1}: 'choices' expects a list of two answers or more, received {str(one)[:80]!r}."
                )
        choices = [[_text(c) for c in one] for one in choices]
    labels = columns.get("label")
    if labels is not None and choices is not None:
        labels = [_chosen(label, one, path, i) for i, (label, one) in enumerate(zip(labels, choices, strict=True))]
    return Cases(
        name=path.name,
        ids=_ids(columns, path),
        inputs=[_text(v) for v in columns["input"]],
        labels=labels,
        choices=choices,
        columns={k: v for k, v in columns.items() if k not in (*_OWN, "choices")},
        examples=_pairs(examples, "input", "label") if examples else (),
        documents=[(_text(i), _text(t)) for i, t in _pairs(documents, "id", "text")] if documents else (),
    )


def write(path: Path, version: Predictions) -> None:
    """Write predictions as JSON lines that `predictions` reads back. Raises OutputError."""
    columns: dict[str, Sequence[Any]] = {"id": version.ids}
    if version.inputs is not None:
        columns["input"] = version.inputs
    if version.labels is not None or "label" not in version.columns:  # of a judge's scores alone, 'label' is a slice
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
    columns |= {name: values for name, values in version.columns.items() if name not in columns}
    write_rows(path, columns)


def write_rows(path: Path, columns: dict[str, Sequence[Any]]) -> None:
    """Write columns as JSON lines, at once."""
    names = list(columns)
    lines = (as_json(dict(zip(names, row, strict=True))) for row in zip(*columns.values(), strict=True))
    files.write(path, "\n".join(lines) + "\n")


def sha256(path: Path) -> str:
    """The hash of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _ids(columns: dict[str, list[Json]], path: Path) -> list[str]:
    if "id" not in columns:
        raise DataError(f"{path} has no column 'id' (found: {', '.join(columns)}). It tells which answers belong together.")
    for i, value in enumerate(columns["id"]):
        if value is None or value != value or isinstance(value, (list, dict, bool)):
            raise DataError(f"{path}, item {i + 1}: an id is a text or a number, received {str(value)[:60]!r}.")
    return [value if type(value) is str else _text(value) for value in columns["id"]]


def _text(value: Json) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _number(value: Json, path: Path, row: int) -> float:
    if value is None or value == "":
        return math.nan
    try:
        if isinstance(value, (list, dict)):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError) as error:
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


def _chosen(label: Json, choices: list[str], path: Path, row: int) -> str:
    """A label of multiple choice as the text of the right answer."""
    found = choice(label, choices)
    if found is None:
        raise DataError(
            f"{path}, item {row + 1}: the label {label!r} is none of the choices {choices}, nor an index or letter of one."
        )
    return found


def _pairs(path: Path, first: str, second: str) -> list[tuple[Any, Any]]:
    columns = rows.columns(Path(path))
    if first not in columns or second not in columns:
        raise DataError(f"{path} has the columns {', '.join(columns) or 'none'}; '{first}' and '{second}' are expected.")
    return list(zip(columns[first], columns[second], strict=True))
