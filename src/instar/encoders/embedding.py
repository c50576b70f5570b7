"""A collection under an encoder: encoded once, timed, and kept for the next time."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import safetensors
from safetensors.numpy import save

from instar import files
from instar.data import datasets
from instar.data.collection import Collection, Vectors
from instar.encoders import length
from instar.errors import DataError, OutputError
from instar.interfaces import Encoder, Floats

_PART = 4096
"""Texts that are kept in one file; an interrupted run loses at most so many."""
_SINGLE = 12
"""Queries that are encoded one by one, to learn how long a user waits."""

Kind = Literal["query", "document"]
Progress = Callable[[int, int], None]


def vectors_of(collection: Collection, encoder: Encoder, progress: Progress | None = None, cache: bool = True) -> Vectors:
    """Vectors of the documents, and of the queries where there are any.

    `document_seconds` is the time of all documents by their number, in batches; `query_seconds` is the median of queries encoded
    alone (of documents, where they are the queries). Both are of this process as it runs, whatever else the machine does.

    Args:
        progress: called with (done, total) over documents and queries.
        cache: keep vectors under the user's cache folder, by the encoder's fingerprint and the texts, and take them from there; a
            file that is not what was written is made anew. A cache that cannot be written costs nothing but the time.

    Raises DataError for a collection without texts, and what `Encoder.encode` raises.
    """
    if collection.texts is None or (collection.query_ids and collection.queries is None):
        raise DataError(f"{collection.name} has no texts of its {'documents' if collection.texts is None else 'queries'}.")
    queries = collection.queries or []
    total = len(collection.texts) + len(queries)

    def told(before: int) -> Progress:
        return lambda done, _: progress(before + done, total) if progress is not None else None

    documents, seconds, cached = _encoded(collection.texts, encoder, "document", told(0), cache)
    asked = _encoded(queries, encoder, "query", told(len(collection.texts)), cache) if queries else None
    alone = _alone(queries or collection.texts, encoder)
    facts = {"encoded": len(documents) - cached, "cached": cached, **length.facts(encoder, collection.texts)}
    return Vectors(encoder.name, encoder.fingerprint, documents, asked and asked[0], seconds / len(documents), alone, facts)


def _encoded(texts: Sequence[str], encoder: Encoder, kind: Kind, progress: Progress, cache: bool) -> tuple[Floats, float, int]:
    """(vectors, seconds that they took when they were made, how many came from the cache)."""
    parts: list[Floats] = []
    seconds, cached = 0.0, 0
    for start in range(0, len(texts), _PART):
        part = texts[start : start + _PART]
        path = _path(encoder, kind, part) if cache else None
        kept = None if path is None else _kept(path, len(part), encoder.dim)
        if kept is None:
            begin = time.perf_counter()
            found = encoder.encode(part, kind, lambda done, _, start=start: progress(start + done, len(texts)))  # type: ignore[misc]
            took = time.perf_counter() - begin
            if path is not None:
                _keep(path, found, took)
        else:
            found, took = kept
            cached += len(part)
        progress(start + len(part), len(texts))
        parts.append(found)
        seconds += took
    return np.concatenate(parts), seconds, cached


def _alone(texts: Sequence[str], encoder: Encoder) -> float:
    """Seconds of one query. Spread over the texts, since long ones take longer; the first call warms up."""
    encoder.encode(texts[:1], "query")
    times = []
    for place in np.linspace(0, len(texts) - 1, min(_SINGLE, len(texts)), dtype=int):
        begin = time.perf_counter()
        encoder.encode([texts[place]], "query")
        times.append(time.perf_counter() - begin)
    return median(times)


def _path(encoder: Encoder, kind: str, texts: Sequence[str]) -> Path:
    total = hashlib.sha256(f"{encoder.fingerprint} {kind} {len(texts)}".encode())
    for text in texts:
        total.update(hashlib.sha256(text.encode(errors="surrogatepass")).digest())
    return datasets.cache() / "vectors" / encoder.fingerprint[:16] / f"{total.hexdigest()}.safetensors"


def _keep(path: Path, vectors: Floats, seconds: float) -> None:
    facts = {"seconds": repr(seconds), "sha256": hashlib.sha256(np.ascontiguousarray(vectors).tobytes()).hexdigest()}
    with contextlib.suppress(OutputError):
        files.folder(path.parent)
        files.write(path, save({"vectors": np.ascontiguousarray(vectors)}, facts))


def _kept(path: Path, rows: int, width: int) -> tuple[Floats, float] | None:
    """What was written, or None where there is nothing, or another thing."""
    if not path.is_file():
        return None
    try:
        with safetensors.safe_open(path, "np") as stream:
            facts: dict[str, Any] = stream.metadata() or {}
            found = stream.get_tensor("vectors")
        seconds = float(facts.get("seconds", "nan"))
    except (OSError, ValueError, safetensors.SafetensorError):
        return None
    right = found.shape == (rows, width) and found.dtype == np.float32 and seconds >= 0
    return (found, seconds) if right and hashlib.sha256(found.tobytes()).hexdigest() == facts.get("sha256") else None
