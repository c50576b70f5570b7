"""Questions of people about Wikipedia: SQuAD sentence by sentence, and XQuAD paragraph by paragraph."""

from __future__ import annotations

import json
from collections.abc import Iterable

import numpy as np

from instar.data import datasets
from instar.data.collection import Collection
from instar.errors import DataError, UnknownNameError

_SPLITS = ("dev", "test")


def squad(split: str = "dev") -> Collection:
    """Question -> the sentence that answers it: 10,570 or 11,877 questions, about 6,700 sentences.

    Text is lower-cased and cut into tokens, as Du et al. 2017 published it. Equal sentences are one document, and equal questions
    one query. Raises UnknownNameError, and what `datasets.locate` raises.
    """
    if split not in _SPLITS:
        raise UnknownNameError.among("split of squad", split, _SPLITS)
    source, asked = (
        path.read_text("utf-8").rstrip("\n").split("\n")
        for path in datasets.locate("squad_nqg")
        if path.stem.endswith(f"-{split}")
    )
    if len(source) != len(asked):
        raise DataError(f"squad/{split}: {len(source)} sentences for {len(asked)} questions.")
    return answered(f"squad/{split}", zip(asked, source, strict=True))


def xquad() -> Collection:
    """Question -> the paragraph that answers it: 1,190 questions, 240 paragraphs. Raises what `datasets.locate` raises."""
    data = json.loads(datasets.locate("xquad")[0].read_text("utf-8"))["data"]
    paragraphs = [paragraph for article in data for paragraph in article["paragraphs"]]
    return answered("xquad", ((qa["question"], paragraph["context"]) for paragraph in paragraphs for qa in paragraph["qas"]))


def answered(name: str, pairs: Iterable[tuple[str, str]]) -> Collection:
    """A collection of (query, document) pairs, equal texts merged."""
    documents: dict[str, int] = {}
    relevant: dict[str, set[int]] = {}
    total = 0
    for query, document in pairs:
        relevant.setdefault(query.strip(), set()).add(documents.setdefault(document.strip(), len(documents)))
        total += 1
    return Collection(
        name,
        ids=[f"d{i}" for i in range(len(documents))],
        texts=list(documents),
        query_ids=[f"q{i}" for i in range(len(relevant))],
        queries=list(relevant),
        relevant=[np.array(sorted(places), dtype=np.int64) for places in relevant.values()],
        facts={"pairs": total, "documents": len(documents), "queries": len(relevant)},
    )
