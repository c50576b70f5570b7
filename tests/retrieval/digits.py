"""Real vectors of two encoders for the tests of stores: scans of handwritten digits, as pixels and as principal components."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

from instar.errors import GenerationError
from instar.interfaces import Floats, Generation, Hits, Index

PIXELS = Generation(0, "pixels-of-digits", 64, "pixels")
PARTS = Generation(1, "components-of-digits", 24, "components")
OTHERS = Generation(1, "other-components-of-digits", 24, "others")


def encoded(rows: int, queries: int = 12) -> tuple[dict[int, Floats], dict[int, Floats]]:
    """Unit vectors of rows and of queries, by generation."""
    pixels = load_digits().data[: rows + queries].astype(np.float32)
    parts = PCA(PARTS.dim, random_state=0).fit_transform(pixels)
    both = {0: unit(pixels), 1: unit(parts)}
    return {g: v[:rows] for g, v in both.items()}, {g: v[rows:] for g, v in both.items()}


def unit(vectors: Floats) -> Floats:
    return np.ascontiguousarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


def expect(
    index: Index,
    ids: Sequence[int | str],
    vectors: dict[int, Floats],
    queries: dict[int, Floats],
    where: Sequence[int],
    k: int = 15,
) -> None:
    """Every row stands in the generation `where` says, with its vector, and searches equal brute force. where: −1 for no row."""
    there = [i for i, g in enumerate(where) if g >= 0]
    held = [g.number for g in index.generations()]
    assert index.counts() == {g: where.count(g) if isinstance(where, list) else list(where).count(g) for g in held}
    paged = {}
    for g in held:
        found: list[int | str] = []
        while page := index.ids(g, after=found[-1] if found else None, limit=37):
            found += page
        assert len(found) == len(set(found))
        paged.update(dict.fromkeys(found, g))
    assert paged == {ids[i]: where[i] for i in there}
    got, numbers = index.fetch([ids[i] for i in there])
    assert numbers == [where[i] for i in there]
    for i, vector in zip(there, got, strict=True):
        np.testing.assert_allclose(vector, vectors[where[i]][i], atol=1e-6)
    scores = np.full((len(queries[0]), len(ids)), -np.inf)
    for g in held:
        at = [i for i in there if where[i] == g]
        scores[:, at] = queries[g] @ vectors[g][at].T
    equals(index.search(queries, k), scores, ids, where)
    for g in held:
        alone = np.where(np.array(where) == g, scores, -np.inf)
        equals(index.nearest(g, queries[g], k), alone, ids, where)


def change_and_back(
    index: Index,
    ids: Sequence[int | str],
    vectors: dict[int, Floats],
    queries: dict[int, Floats],
    again: Callable[[Index], Index],
) -> Index:
    """Nothing moves, a third moves and goes back, all move, older vectors go: at every stage all is what brute force says.

    again: opens the index anew, and may look at it in other ways. Returns the last one.
    """
    where, order = [0] * len(ids), np.random.default_rng(0).permutation(len(ids))
    expect(index, ids, vectors, queries, where)
    for part in (order[:0], order[: len(ids) // 3], order):
        index.begin(PARTS)
        index.move([ids[i] for i in part], vectors[1][part], 1)
        for i in part:
            where[i] = 1
        expect(index, ids, vectors, queries, where)
        index = again(index)
        expect(index, ids, vectors, queries, where)
        if 0 < len(part) < len(ids):
            index.rollback()
            where = [0] * len(ids)
            expect(index, ids, vectors, queries, where)
            with pytest.raises(GenerationError, match="no older"):
                index.rollback()
    index.finish()
    index.finish()
    assert [g.number for g in index.generations()] == [1]
    expect(index, ids, vectors, queries, where)
    return index


def equals(hits: Hits, scores: Floats, ids: Sequence[int | str], where: Sequence[int]) -> None:
    """Hits are the best of `scores` [Q, N], whose −inf are rows that cannot be found."""
    k, place = hits.scores.shape[1], {name: i for i, name in enumerate(ids)}
    assert hits.ids.shape == hits.generations.shape == (len(scores), k)
    best = -np.sort(-scores, axis=1)[:, :k]
    best = np.pad(best, ((0, 0), (0, k - best.shape[1])), constant_values=-np.inf)
    np.testing.assert_allclose(hits.scores, best, atol=2e-6)
    for row in range(len(scores)):
        names = [name for name in hits.ids[row] if name is not None]
        assert len(names) == len(set(names)) == int((best[row] > -np.inf).sum())
        for score, name, generation in zip(hits.scores[row], hits.ids[row], hits.generations[row], strict=True):
            if name is None:
                assert (score, generation) == (-np.inf, -1)
            else:
                assert abs(scores[row, place[name]] - score) < 2e-6
                assert generation == where[place[name]]


def recall(found: Any, queries: Floats, vectors: Floats, rows: Any, k: int) -> float:
    """Mean share of the k nearest among `rows` that were found."""
    best = rows[np.argsort(-(queries @ vectors[rows].T), axis=1)[:, :k]]
    return float(np.mean([len(set(a) & set(b)) / k for a, b in zip(found.tolist(), best.tolist(), strict=True)]))


def recall_stays(change: Index, vectors: Floats, queries: Floats, before: float) -> Hits:
    """Rows leave the old generation until hardly any is left: recall within it is at least what it was before, at every share.

    Returns the last hits.
    """
    order = np.random.default_rng(1).permutation(len(vectors))
    change.begin(Generation(1, "new", 8))
    moved = 0
    for share in (0.0, 0.25, 0.5, 0.75, 0.9, 0.99):
        some = order[moved : int(len(vectors) * share)]
        change.move(some.tolist(), unit(vectors[some, :8]), 1)
        moved += len(some)
        hits = change.nearest(0, queries, 10)
        assert recall(hits.ids, queries, vectors, np.sort(order[moved:]), 10) >= before - 0.01, share
    return hits
