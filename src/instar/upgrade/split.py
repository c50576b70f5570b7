"""Which items teach, which predict, and which check the prediction.

Heads are fitted on pairs that are not searched: in an index of a million rows hardly any row took part in the fit. A prediction
and its check use different queries of the same documents, as tomorrow's queries will meet the documents of today. Both halves are
alike in how well either encoder alone answers them, so that less of their difference is chance: of many random halvings the one
is taken whose means are the nearest (rerandomisation: Morgan, Rubin 2012). What a half is made alike in is not checked on it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from instar.data.collection import Collection
from instar.errors import DataError

Places = NDArray[np.int64]

_FIT = 0.25
"""Share of documents (and of the queries about them) that heads are fitted on."""
_MOST_PAIRS = 20_000
_MOST_LOOKED_AT = 3
"""Times the queries of a half that are looked at."""
_DRAWS = 512
"""Halvings that are compared."""
LEAST = 40
"""Queries below which nothing can be predicted."""


@dataclass(frozen=True)
class Split:
    """Places of documents and of queries."""

    fit: Places
    """Documents under both encoders that heads learn from; not in the gallery."""
    gallery: Places
    """Documents that are searched."""
    choose: Places
    """Queries by which an arm's settings are chosen; their vectors also teach the heads."""
    predict: Places
    """Queries of the prediction."""
    held_out: Places
    """Queries that check it."""
    itself: bool
    """Whether queries are places of documents."""
    blocks: Places
    """[queries of the collection] what belongs together: the first relevant document of a query."""


_ASKED = {
    "queries": "queries have all that they should find",
    "labels": "documents share their label with another",
    "neighbours": "documents can ask for others",
}
_MORE = {
    "queries": "Give more queries, or take a larger sample.",
    "labels": "Give more documents, or labels that more of them share.",
    "neighbours": "Give more documents.",
}

Answered = Callable[[Places, Places], NDArray[np.float64]]
"""(gallery, queries) -> [Q, M] how well each query is answered by either encoder alone."""


def split(collection: Collection, answered: Answered, *, seed: int = 0, pairs: int | None = None, most: int = 2000) -> Split:
    """Split a collection.

    pairs: documents that heads learn from; by default a quarter, at most 20,000. most: queries of the prediction and of the
    check, each. Raises DataError for too few queries or documents.
    """
    draw = np.random.default_rng(seed)
    n = len(collection)
    order = draw.permutation(n)
    count = min(_MOST_PAIRS, round(_FIT * n)) if pairs is None else pairs
    if not 2 <= count <= n - 2:
        raise DataError(
            f"{collection.name}: documents are divided into those that heads are fitted on and those that are searched; of {n}, "
            f"{count} to fit on leave too few. Give more documents."
        )
    fit, gallery = np.sort(order[:count]), np.sort(order[count:])
    if collection.relevant is None:
        chosen = order[count:]  # documents ask; those of the gallery only
        if collection.labels is not None:
            chosen = chosen[_answered(collection, chosen)]
        blocks = np.arange(n)
    else:
        inside = np.zeros(n, dtype=bool)
        inside[gallery] = True
        whole = np.array([bool(inside[r].all()) for r in collection.relevant])
        chosen = draw.permutation(np.flatnonzero(whole))
        blocks = np.array([int(r[0]) for r in collection.relevant], dtype=np.int64)
    if len(chosen) < LEAST:
        raise DataError(
            f"{collection.name}: {len(chosen)} {_ASKED[collection.truth]} among the {len(gallery)} documents that heads are not "
            f"fitted on; a prediction and its check need {LEAST} or more. {_MORE[collection.truth]}"
        )
    chosen = chosen[: _MOST_LOOKED_AT * most]
    parts = _alike(chosen, blocks, answered(gallery, chosen), draw)
    asking = None if collection.relevant is None else np.flatnonzero(~whole)
    choose = parts[0] if asking is None else np.concatenate([parts[0], asking])
    return Split(fit, gallery, choose, parts[1][:most], parts[2][:most], collection.relevant is None, blocks)


def _answered(collection: Collection, places: Places) -> NDArray[np.bool_]:
    """Which documents have another of their label among these."""
    assert collection.labels is not None
    labels = [collection.labels[i] for i in places]
    seen: dict[object, int] = {}
    for label in labels:
        seen[label] = seen.get(label, 0) + 1
    return np.array([seen[label] > 1 for label in labels])


def _alike(chosen: Places, blocks: Places, answered: NDArray[np.float64], draw: np.random.Generator) -> list[Places]:
    """A tenth of the blocks at random; the rest in two halves, of every two neighbours in block and answer one in each."""
    names, codes = np.unique(blocks[chosen], return_inverse=True)
    total = answered.sum(1)
    mean = np.bincount(codes, weights=total) / np.bincount(codes)
    first = draw.permutation(len(names))[: max(1, len(names) // 10)]
    part = np.where(np.isin(codes, first), 0, 1)
    rest = np.flatnonzero(part)
    rest = rest[np.lexsort((draw.random(len(rest)), total[rest], codes[rest], mean[codes[rest]]))]
    pairs = rest[: len(rest) // 2 * 2].reshape(-1, 2)
    apart = answered[pairs[:, 0]] - answered[pairs[:, 1]]
    swaps = draw.integers(0, 2, (_DRAWS, len(pairs)))
    unlike = (1 - 2 * swaps) @ apart
    swap = swaps[np.argmin(np.einsum("nm,mk,nk->n", unlike, np.linalg.pinv(apart.T @ apart), unlike))]
    part[pairs[np.arange(len(pairs)), 1 - swap]] = 2
    return [chosen[part == p] for p in range(3)]
