"""A change of encoder for tests: paragraphs of Python's documentation, and two encoders that were fitted on them.

As a program: `python made_change.py STORE ENCODERS` backfills STORE, a little slowly, and says "moved" after every batch.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np

from instar.encoders.lsa import Lsa
from instar.interfaces import Floats, Generation, Index
from instar.retrieval.backfill import Backfill
from instar.retrieval.exact import ExactIndex

ROWS = 400


@cache
def texts() -> dict[str, str]:
    """400 different paragraphs of twenty words or more, by id."""
    found: dict[str, str] = {}
    for topic, text in topics.items():
        for number, part in enumerate(re.split(r"\n\s*\n", text)):
            words = " ".join(part.split())
            if len(words.split()) >= 20 and "::=" not in words and words not in found.values():
                found[f"{topic}/{number}"] = words
            if len(found) == ROWS:
                return found
    raise AssertionError("Python's documentation has become short")


@cache
def encoders() -> tuple[Lsa, Lsa]:
    """The old and the new encoder, of 24 and 96 dimensions; in the program the saved ones, since no two fits are equal."""
    if __name__ == "__main__":
        return Lsa(Path(sys.argv[2]) / "old"), Lsa(Path(sys.argv[2]) / "new")
    return Lsa.fit(list(texts().values()), {"dims": 24}), Lsa.fit(list(texts().values()), {"dims": 96, "min_count": 3})


def program(store: Path) -> list[str]:
    """The command that runs this file for a store; the encoders are saved beside it."""
    folder = store.parent / "encoders"
    for name, made in zip(("old", "new"), encoders(), strict=True):
        made.save(folder / name)
    return [sys.executable, __file__, str(store), str(folder)]


def generation(number: int) -> Generation:
    """Of the old (0) or the new (1) encoder."""
    made = encoders()[number]
    return Generation(number, made.fingerprint, made.dim, made.name)


def store(folder: Path) -> ExactIndex:
    """All paragraphs under the old encoder."""
    vectors = encoders()[0].encode(list(texts().values()))
    return ExactIndex.adopt(str(folder), "", generation(0), vectors=vectors, ids=list(texts()))


def backfill(index: Index, **settings: object) -> Backfill:
    """A backfill to the new encoder."""
    given = {"encode": encoders()[1].encode, "texts": texts(), "batch": 16, **settings}
    return Backfill(index, generation(1), **given)  # type: ignore[arg-type]


def queries(some: Sequence[str]) -> dict[int, Floats]:
    """Generation -> texts as its queries."""
    return {number: encoder.encode(some, "query") for number, encoder in enumerate(encoders())}


def whole(index: Index) -> list[int]:
    """Every row is there once, with the vector of the generation in which it stands; returns those generations."""
    ids, written = list(texts()), list(texts().values())
    vectors, generations = index.fetch(ids)
    assert sum(index.counts().values()) == len(ids)
    right = [encoder.encode(written) for encoder in encoders()]
    for place, (vector, number) in enumerate(zip(vectors, generations, strict=True)):
        np.testing.assert_allclose(vector, right[number][place], atol=1e-6)
    hits = index.search(queries(written), 3)
    assert all(len(set(row)) == 3 for row in hits.ids)
    own = hits.scores[:, 0] > 0.999
    assert own.all()
    return generations


def main() -> None:
    """Encode a little slowly, so that a kill falls anywhere."""

    def encode(some: Sequence[str]) -> Floats:
        time.sleep(0.005)
        return encoders()[1].encode(some)

    with ExactIndex.open(sys.argv[1]) as index:
        work = backfill(index, encode=encode, batch=8)
        work.run(lambda done, total: (sys.stdout.write(f"moved {done} of {total}\n"), sys.stdout.flush()))


if __name__ == "__main__":
    main()
