"""Old and new rows of a nested head in one space: exact scores, one search, every store that can; the others refuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
import torch
import usearch.index
from digits import encoded, unit

from instar.compat import pairs
from instar.compat.bt2 import BT2
from instar.compat.ridge import Ridge
from instar.errors import GenerationError, ShapeError, StoreError
from instar.interfaces import Floats, Generation
from instar.retrieval.exact import ExactIndex
from instar.retrieval.faiss_index import FaissIndex
from instar.retrieval.journalled import JournalledIndex
from instar.retrieval.opening import open_index
from instar.retrieval.padded import mean_norm, pad, unpad
from instar.retrieval.spaces import widened
from instar.retrieval.usearch_index import UsearchIndex

ROWS, WIDTH, D, K, C = 1500, 24, 64, 8, 2.0
OLD, NEW = Generation(0, "components", WIDTH), Generation(1, "bt2 of pixels", D + K)
IDS = [f"scan {i}" for i in range(ROWS)]


class Digits:
    """A trained BT² head from 64 pixels to 24 components, and the vectors of rows and queries."""

    def __init__(self) -> None:
        (rows, queries) = encoded(ROWS, 60)
        old, new = rows[1], rows[0]
        self.head = BT2(D, WIDTH, k=K, C=C, hidden=64)
        self.head.fit(pairs.of(old[:600], new[:600]), steps=150)
        self.old = old
        with torch.inference_mode():
            self.raw, self.raw_queries = (self.head.full(torch.from_numpy(v)).numpy() for v in (new, queries[0]))
        self.new, self.queries = unit(self.raw), unit(self.raw_queries)
        self.prefixes = unit(self.raw_queries[:, :WIDTH])
        self.norm = mean_norm(self.head, new[:600])

    def scores(self, moved: Any) -> Any:
        """[Q, N] in float64, by the formulas of the paper's vectors: raw, with the one constant."""
        q, v = self.raw_queries.astype(np.float64), self.raw.astype(np.float64)
        m = np.linalg.norm(v[:600, :WIDTH], axis=1).mean()
        old = q[:, :WIDTH] @ self.old.T.astype(np.float64) / m
        return np.where(moved, q @ v.T / (1 + C * C), old)


@pytest.fixture(scope="module")
def digits() -> Digits:
    return Digits()


def exact(folder: Path, vectors: Floats) -> JournalledIndex:
    return ExactIndex.adopt(str(folder / "index"), generation=OLD, vectors=vectors, ids=IDS)


def of_faiss(factory: str, metric: int) -> Callable[[Path, Floats], JournalledIndex]:
    def make(folder: Path, vectors: Floats) -> JournalledIndex:
        index = faiss.index_factory(WIDTH, factory, metric)
        index.train(vectors)
        if factory.startswith("HNSW"):
            index.hnsw.efSearch = 32
        index.add(vectors)
        faiss.write_index(index, str(folder / "own.faiss"))
        return FaissIndex.adopt(str(folder / "own.faiss"), generation=OLD, ids=IDS)

    return make


def of_usearch(folder: Path, vectors: Floats) -> JournalledIndex:
    index = usearch.index.Index(ndim=WIDTH, metric="cos", dtype="f32")
    index.add(np.arange(ROWS), vectors)
    index.save(str(folder / "own.usearch"))
    return UsearchIndex.adopt(str(folder / "own.usearch"), generation=OLD, ids=IDS)


IP, L2 = faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2


def test_padding_keeps_inner_products_to_the_bit_in_float64() -> None:
    generator = np.random.default_rng(0)
    old, queries = generator.standard_normal((200, WIDTH)), generator.standard_normal((30, D + K))
    padded = widened(old, D + K, 1.0)
    for query in queries:
        for row, wide in zip(old, padded, strict=True):
            # One order of additions for both: the zeros come last.
            assert sum(a * b for a, b in zip(query, wide, strict=True)) == sum(a * b for a, b in zip(query, row, strict=False))


def test_the_constant(digits: Digits) -> None:
    assert digits.norm == pytest.approx(np.linalg.norm(digits.new[:600, :WIDTH], axis=1).mean(), abs=1e-6)
    assert 0 < digits.norm < 1
    with pytest.raises(ShapeError, match="is not nested"):
        mean_norm(Ridge(D, WIDTH), np.zeros((2, D), np.float32))


@pytest.mark.parametrize(
    ("make", "recall"),
    [
        (exact, 1.0),
        (of_faiss("Flat", IP), 1.0),
        (of_faiss("Flat", L2), 1.0),
        (of_faiss("HNSW16", IP), 0.98),
        (of_faiss("HNSW16", L2), 0.98),
    ],
    ids=["exact", "flat", "flat of L2", "graph", "graph of L2"],
)
def test_one_search_at_every_stage(
    make: Callable[[Path, Floats], JournalledIndex], recall: float, digits: Digits, tmp_path: Path
) -> None:
    index = make(tmp_path, digits.old)
    before = index.search({0: digits.prefixes}, 10)
    pad(index, NEW.dim, digits.norm)
    reader = open_index(f"{index.kind}:{index.place}", readonly=True)
    np.testing.assert_allclose(index.search({0: digits.prefixes}, 10).scores, before.scores, atol=1e-6)
    index.begin(NEW)
    moved = np.zeros(ROWS, bool)
    places = {name: i for i, name in enumerate(IDS)}
    for part in [np.empty(0, np.int64), *np.array_split(np.random.default_rng(0).permutation(ROWS), 4)]:
        index.move([IDS[i] for i in part], digits.new[part], 1)
        moved[part] = True
        true = digits.scores(moved)
        for asked in (index, reader):
            for queries in ({1: digits.queries}, {0: digits.prefixes, 1: digits.queries}):
                hits = asked.search(queries, 10)
                at = np.array([[places[name] for name in row] for row in hits.ids])
                np.testing.assert_allclose(hits.scores, np.take_along_axis(true, at, 1), atol=2e-6)
                assert np.array_equal(hits.generations, moved[at])
                assert hits.scores.mean() > -np.sort(-true, axis=1)[:, :10].mean() - (1e-6 if recall == 1 else 0.01)
                found = (np.take_along_axis(true, at, 1) >= -np.sort(-true, axis=1)[:, 9:10] - 2e-6).mean()
                assert found >= recall
        for generation, query, vectors in ((0, digits.prefixes, digits.old), (1, digits.queries, digits.new)):
            standing = np.flatnonzero(moved == generation)
            hits = index.nearest(generation, query, 5)
            if len(standing):
                best = -np.sort(-(query @ vectors[standing].T), axis=1)[:, :5]
                assert (np.abs(hits.scores - best) < 1e-5).mean() >= recall
            else:
                assert np.isneginf(hits.scores).all()
    found, generations = index.fetch(IDS)
    assert set(generations) == {1}
    assert np.array_equal(np.stack(found), digits.new)
    index.rollback()
    np.testing.assert_allclose(np.stack(index.fetch(IDS)[0]), digits.old, atol=1e-7)
    index.begin(NEW)
    index.move(IDS, digits.new, 1)
    index.finish()
    for asked in (index, reader):
        assert asked.counts() == {1: ROWS}
        assert asked.padding is None  # type: ignore[attr-defined]
        assert (np.abs(asked.search({1: digits.queries}, 1).scores - digits.scores(moved).max(1)[:, None]) < 1e-5).mean() > 0.9


def test_what_cannot_be_padded_says_so_and_stays_as_it_is(digits: Digits, tmp_path: Path) -> None:
    for number, make in enumerate((of_usearch, of_faiss("IVF4,Flat", IP))):
        (tmp_path / str(number)).mkdir()
        index = make(tmp_path / str(number), digits.old)
        with pytest.raises(StoreError, match="cannot be padded"):
            pad(index, NEW.dim, digits.norm)
        assert index.padding is None
        assert index.search({0: digits.prefixes}, 3).ids.shape == (60, 3)
    faiss.write_index(faiss.index_factory(WIDTH, "PQ4x4", IP), str(tmp_path / "codes.faiss"))
    with pytest.raises(StoreError, match="rebuild it from the full vectors"):
        FaissIndex.adopt(str(tmp_path / "codes.faiss"), generation=OLD)


def test_vectors_keep_their_length_where_padding_adds_no_width(digits: Digits, tmp_path: Path) -> None:
    """The padded graph holds them longer by 1 / norm; the file that an end leaves must not."""
    index = of_faiss("HNSW8", IP)(tmp_path, digits.old)
    pad(index, WIDTH, 0.8)
    index.add(["another"], digits.old[:1], 0)
    index.finish()
    index.close()
    own = faiss.read_index(str(tmp_path / "own.faiss"))
    np.testing.assert_allclose(np.linalg.norm(own.reconstruct_n(0, ROWS + 1), axis=1), 1, atol=1e-5)


def test_refusals(digits: Digits, tmp_path: Path) -> None:
    index = exact(tmp_path, digits.old)
    for dim, norm in ((WIDTH - 1, 0.5), (D, 0.0), (D, 1.1), (D, float("nan"))):
        with pytest.raises(ShapeError, match="Padding expects"):
            pad(index, dim, norm)
    pad(index, NEW.dim, digits.norm)
    unpad(index)
    index.begin(NEW)
    with pytest.raises(GenerationError, match="before a change"):
        pad(index, NEW.dim, digits.norm)
    index.rollback()
    pad(index, NEW.dim, digits.norm)
    with pytest.raises(ShapeError, match="padded to 72"):
        index.begin(Generation(1, "another", 80))
    index.begin(NEW)
    with pytest.raises(GenerationError, match="two generations at most"):
        index.begin(Generation(2, "third", NEW.dim))
    with pytest.raises(GenerationError, match="under way"):
        unpad(index)
    with pytest.raises(GenerationError, match="no beginnings"):
        index.search({0: digits.prefixes[::-1].copy(), 1: digits.queries}, 3)
    by_rank = index.search({0: digits.prefixes, 1: digits.queries}, 3, fusion="rank")  # lists apart, as everywhere
    assert (by_rank.generations == 0).all()
