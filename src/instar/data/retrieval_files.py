"""Documents, queries and relevance in files of the user: rows with names of columns, and the layout of BEIR."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instar.data.collection import Collection
from instar.errors import DataError
from instar.gate import rows
from instar.gate.values import canonical, number

Column = list[Any]


def read(path: Path, queries: Path | None = None, qrels: Path | None = None) -> Collection:
    """A file of documents, and where given a file of queries.

    documents: `id`, and where they exist `text` (or `title` and `text`), `label`, `count` (how often it is asked for).
    queries: `id`, `text`, `relevant` (an id, or a list of ids), or relevance in `qrels`: lines `query document grade`, or those
    of TREC, `query 0 document grade`; grades above 0 are relevant. Raises DataError with the row of what is wrong.
    """
    path = Path(path)
    columns = rows.columns(path)
    ids = _ids(columns, path)
    labels = columns.get("label")
    if labels is not None and None in labels:
        raise DataError(f"{path}, row {labels.index(None) + 1} has no label. Leave the column out, or the row.")
    asked = _queries(Path(queries), ids, Path(qrels) if qrels else None) if queries is not None else {}
    if queries is None and qrels is not None:
        raise DataError(f"{qrels} says what is relevant to queries; give the queries too (--queries).")
    counts = {name: _count(value, path, i) for i, (name, value) in enumerate(zip(ids, columns.get("count", ()), strict=False))}
    facts = {"source": path.name, "documents": len(ids), **asked.pop("facts", {})}
    texts = _texts(columns, path)
    if texts is not None and (again := len(texts) - len(set(texts))):
        facts["equal_texts"] = again
    found = [canonical(label) for label in labels] if labels is not None else None
    return Collection(path.stem, ids, texts, found, counts=counts, facts=facts, **asked)


def beir(folder: Path, queries: Path | None = None, qrels: Path | None = None) -> Collection:
    """A folder with corpus.jsonl, queries.jsonl and qrels/*.tsv (test, where there are several). Raises as `read`."""
    found = sorted((folder / "qrels").glob("*.tsv"))
    if qrels is None and not found:
        raise DataError(f"{folder} has no qrels/*.tsv, which says what is relevant.")
    chosen = qrels or next((file for file in found if file.stem == "test"), found[0])
    made = read(folder / "corpus.jsonl", queries or folder / "queries.jsonl", chosen)
    return Collection(**{**vars(made), "name": folder.name})


def _queries(path: Path, documents: Sequence[str], qrels: Path | None) -> dict[str, Any]:
    columns = rows.columns(path)
    names, texts = _ids(columns, path), _texts(columns, path)
    places = {name: i for i, name in enumerate(documents)}
    if qrels is not None:
        relevant = _graded(qrels, places, set(names))
    elif "relevant" in columns:
        relevant = {name: _places(v, places, path, i) for i, (name, v) in enumerate(zip(names, columns["relevant"], strict=True))}
    else:
        raise DataError(
            f"{path} has the columns {', '.join(columns)}; queries need 'relevant' (an id of a document, or a list), or --qrels."
        )
    kept = [i for i, name in enumerate(names) if name in relevant]
    if not kept:
        raise DataError(f"{qrels} names a relevant document for none of the {len(names)} queries of {path}.")
    facts = {"queries": len(kept)} | ({"queries_without_relevance": n} if (n := len(names) - len(kept)) else {})
    return {
        "query_ids": [names[i] for i in kept],
        "queries": None if texts is None else [texts[i] for i in kept],
        "relevant": [relevant[names[i]] for i in kept],
        "facts": facts,
    }


def _graded(path: Path, documents: dict[str, int], queries: set[str]) -> dict[str, NDArray[np.int64]]:
    found: dict[str, set[int]] = {}
    try:
        lines = path.read_text("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    for i, line in enumerate(lines, 1):
        parts = line.split("\t") if "\t" in line else line.split()
        if not line.strip() or (i == 1 and number(parts[-1].strip()) is None):  # BEIR has a header
            continue
        if len(parts) not in (3, 4) or (grade := number(parts[-1].strip())) is None:
            raise DataError(f"{path}, line {i}: 'query document grade' or 'query 0 document grade' is expected: {line[:80]!r}.")
        query, document = parts[0].strip(), parts[-2].strip()
        if grade <= 0:
            continue
        if document not in documents:
            raise DataError(f"{path}, line {i}: there is no document {document!r}.")
        if query not in queries:
            raise DataError(f"{path}, line {i}: there is no query {query!r}.")
        found.setdefault(query, set()).add(documents[document])
    return {query: np.array(sorted(places), dtype=np.int64) for query, places in found.items()}


def _places(value: Any, documents: dict[str, int], path: Path, row: int) -> NDArray[np.int64]:
    if isinstance(value, str) and re.match(r"\s*\[", value):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, row {row + 1}: 'relevant' is no list: {error}.") from error
    named = value if isinstance(value, list) else [value]
    if not named or any(one is None or isinstance(one, (bool, list, dict)) for one in named):
        raise DataError(f"{path}, row {row + 1}: 'relevant' expects an id or a list of ids, received {value!r}.")
    if unknown := [one for one in named if _id(one) not in documents]:
        raise DataError(f"{path}, row {row + 1}: there is no document {unknown[0]!r}.")
    return np.array(sorted({documents[_id(one)] for one in named}), dtype=np.int64)


def _ids(columns: dict[str, Column], path: Path) -> list[str]:
    name = "id" if "id" in columns else "_id"
    if name not in columns:
        raise DataError(f"{path} has the columns {', '.join(columns) or 'none'}; 'id' is missing.")
    seen: dict[str, int] = {}
    for i, value in enumerate(columns[name]):
        if value is None or value == "" or isinstance(value, (list, dict, bool)):
            raise DataError(f"{path}, row {i + 1}: an id is a text or a number, received {str(value)[:60]!r}.")
        if seen.setdefault(_id(value), i) != i:
            raise DataError(f"{path}, row {i + 1}: the id {value!r} stands in row {seen[_id(value)] + 1} too.")
    return list(seen)


def _id(value: Any) -> str:
    """An id as text, as it is compared everywhere: 7 and 7.0 are "7", and texts stay as they are."""
    return value if isinstance(value, str) else canonical(value)


def _texts(columns: dict[str, Column], path: Path) -> list[str] | None:
    if "text" not in columns:
        return None
    titles = columns.get("title", [None] * len(columns["text"]))
    found = []
    for i, (title, text) in enumerate(zip(titles, columns["text"], strict=True)):
        parts = [part for part in (title, text) if part is not None]
        if any(not isinstance(part, str) for part in parts):
            raise DataError(f"{path}, row {i + 1}: 'text' expects text, received {str(parts[-1])[:60]!r}.")
        found.append(" ".join(part.strip() for part in parts).strip())
        if not found[-1]:
            raise DataError(f"{path}, row {i + 1} has no text. Leave the row out; it cannot be found.")
    return found


def _count(value: Any, path: Path, row: int) -> float:
    found = number(value) if value is not None else 0.0
    if found is None or not 0 <= found < np.inf:
        raise DataError(f"{path}, row {row + 1}: 'count' expects a number of at least 0, received {value!r}.")
    return found
