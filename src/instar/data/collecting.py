"""From what a user names to a collection: one that has a name, files, a folder of BEIR, or a file of vectors."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from instar.data import retrieval_files
from instar.data.collection import Collection
from instar.errors import DataError, ShapeError, UnknownNameError
from instar.gate import rows

NAMES = ("topics", "squad", "xquad", "clinc150")
"""`squad` and `clinc150` take a split: `squad:test`, `clinc150:train`."""


def open_collection(
    data: str | None = None,
    *,
    queries: Path | None = None,
    qrels: Path | None = None,
    sample: int | None = None,
    seed: int = 0,
) -> Collection:
    """Documents, queries and relevance.

    Args:
        data: one of NAMES (None: `topics`, which needs no download); a file of documents (`retrieval_files.read`); a folder of
            BEIR; a file of vectors, of which only ids are known.
        queries, qrels: files with the queries, and with what is relevant to them.
        sample: most documents that are kept, see `sampled`. seed: which.

    Raises UnknownNameError, DataError with the row of what is wrong, MissingExtraError.
    """
    found = _open("topics" if data is None else data, queries, qrels)
    return found if sample is None else sampled(found, sample, seed)


def sampled(collection: Collection, documents: int, seed: int) -> Collection:
    """At most so many documents at random, in their order, with the queries all of whose relevant documents are among them.

    Where there are queries, their share is kept as large as that of the documents: first the relevant documents of so many
    random queries, then others. Raises ShapeError for a size below 1.
    """
    if documents < 1:
        raise ShapeError(f"A sample expects 1 document or more, received {documents}.")
    total = len(collection)
    if documents >= total:
        return collection
    draw = np.random.default_rng([seed, total])
    chosen = np.zeros(total, dtype=bool)
    if collection.relevant is not None:
        for query in draw.permutation(len(collection.relevant))[: len(collection.relevant) * documents // total]:
            places = collection.relevant[query]
            if chosen.sum() + (~chosen[places]).sum() <= documents:
                chosen[places] = True
    others = draw.permutation(np.flatnonzero(~chosen))
    chosen[others[: documents - chosen.sum()]] = True
    whole = collection
    if collection.relevant is not None:
        kept = [i for i, places in enumerate(collection.relevant) if chosen[places].all()]
        if not kept:
            raise DataError(f"No query of {collection.name} has all its documents among {documents}. Take a larger sample.")
        whole = dataclasses.replace(
            collection,
            query_ids=[collection.query_ids[i] for i in kept],
            queries=None if collection.queries is None else [collection.queries[i] for i in kept],
            relevant=[collection.relevant[i] for i in kept],
        )
    found = whole.of(np.flatnonzero(chosen))
    told = f"{len(found):,} of {total:,} documents, seed {seed}"
    return dataclasses.replace(found, facts={**collection.facts, "sample": told})


def _open(data: str, queries: Path | None, qrels: Path | None) -> Collection:
    path = Path(data).expanduser()
    if os.path.isdir(path):  # noqa: PTH112 - a text too long for a name is no folder, and no error
        if not (path / "corpus.jsonl").is_file():
            raise DataError(f"{path} is a folder without corpus.jsonl. A folder of BEIR, or a file of documents is expected.")
        return retrieval_files.beir(path, queries, qrels)
    kind = path.suffix.lower()
    if kind in (".npy", ".npz") or (kind == ".parquet" and _only_vectors(path)):
        return _of_vectors(path, queries, qrels)
    if kind in rows.KINDS:
        return retrieval_files.read(path, queries, qrels)
    name, _, split = data.partition(":")
    if name not in NAMES or (split and name in ("topics", "xquad")):
        raise UnknownNameError.among(f"collection (and no file {', '.join(rows.KINDS)} or folder of BEIR)", data, NAMES)
    if queries is not None or qrels is not None:
        raise DataError(f"{name} has its own queries; give --queries and --qrels with documents of your own.")
    return _named(name, split)


def _named(name: str, split: str) -> Collection:
    from instar.data.squad import squad, xquad
    from instar.data.topics import topics

    known: dict[str, Callable[..., Collection]] = {"topics": topics, "squad": squad, "xquad": xquad, "clinc150": _clinc150}
    return known[name](split) if split else known[name]()


def _clinc150(split: str = "test") -> Collection:
    from instar.data.intents import clinc150_cases

    cases = clinc150_cases(split, examples_per_class=0)
    return Collection(cases.name, cases.ids, cases.inputs, cases.labels, facts={"documents": len(cases.ids), "classes": 150})


def _of_vectors(path: Path, queries: Path | None, qrels: Path | None) -> Collection:
    from instar.encoders import files

    if queries is not None or qrels is not None:
        raise DataError(f"{path} holds vectors; relevance of queries needs a file of documents with 'id' (text may be left out).")
    ids, vectors, facts = files.vectors(path)
    return Collection(path.stem, ids or [str(i) for i in range(len(vectors))], facts=facts)


def _only_vectors(path: Path) -> bool:
    from instar import extras

    parquet, arrow = extras.require("pyarrow.parquet", "parquet"), extras.require("pyarrow", "parquet")
    try:
        names = parquet.read_schema(path).names
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    return "text" not in names and "label" not in names
