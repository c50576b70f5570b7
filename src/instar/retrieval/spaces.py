"""Vectors of one width in memory, searchable by inner product: `Space`, and `FlatSpace`, which is exact.

    N vectors that count · S slots · Q queries · k results
A vector that was added keeps its slot; what was dropped is never found again.
"""

from __future__ import annotations

import abc

import numpy as np
from numpy.typing import NDArray

from instar.errors import StoreError
from instar.interfaces import Floats

Slots = NDArray[np.int64]
_SCORES = 1 << 24
"""Scores that are held at a time: 64 MB."""
_FIRST = 2048
"""Rows among which a first k best are looked for."""
_ROWS = 65536
"""Rows whose scores are held at a time."""


class Space(abc.ABC):
    """The vectors of a generation, or of all of them where they share one space."""

    dim: int

    @abc.abstractmethod
    def __len__(self) -> int:
        """Vectors that count."""

    @abc.abstractmethod
    def add(self, vectors: Floats) -> int:
        """Vectors [N, dim] get the next N slots; returns the first of them."""

    @abc.abstractmethod
    def drop(self, slots: Slots) -> None:
        """These vectors no longer count. They are there, each once."""

    @abc.abstractmethod
    def vectors(self, slots: Slots) -> Floats:
        """The vectors [N, dim] of slots that count."""

    def padded(self, dim: int, factor: float) -> Space:
        """The same slots with vectors times a factor and zeros behind, [N, dim], and room for others of that width.

        Raises StoreError for a space that cannot (see `retrieval.padded`).
        """
        raise StoreError(
            f"A {type(self).__name__} of this form cannot be padded; exact, FAISS flat and FAISS HNSW ones can. Search with "
            "queries for each generation instead."
        )

    @abc.abstractmethod
    def search(self, queries: Floats, k: int, among: NDArray[np.bool_] | None = None) -> tuple[Floats, Slots]:
        """The k largest inner products of each query [Q, dim]: scores and slots [Q, k], −inf and −1 beyond the last.

        among: bool [S], slots that may be found; None for all that count.
        """


class FlatSpace(Space):
    """Exact search. What counts lies together without gaps, so that a search is one matrix product over exactly that.

    base: [N, dim] float32 that may be written to (a private map of a file: pages that nothing moved in stay shared with other
    processes). owner: what has to live as long as the base.
    Search is O(Q N dim) and holds no [Q, N]. Dropping n vectors moves at most n others into their places.
    """

    def __init__(self, dim: int, base: Floats | None = None, owner: object = None) -> None:
        self.dim, self._owner = dim, owner
        self._fixed = _Pile(np.empty((0, dim), np.float32) if base is None else base, 0)
        self._grown = _Pile(np.empty((0, dim), np.float32), self._fixed.count)

    def __len__(self) -> int:
        return self._fixed.count + self._grown.count

    def add(self, vectors: Floats) -> int:
        return self._grown.add(vectors)

    def drop(self, slots: Slots) -> None:
        inside = slots < self._grown.first
        self._fixed.drop(slots[inside])
        self._grown.drop(slots[~inside])
        self._grown.shrink()

    def vectors(self, slots: Slots) -> Floats:
        found = np.empty((len(slots), self.dim), np.float32)
        inside = slots < self._grown.first
        found[inside] = self._fixed.vectors(slots[inside])
        found[~inside] = self._grown.vectors(slots[~inside])
        return found

    def padded(self, dim: int, factor: float) -> Space:
        return FlatSpace(dim, widened(self._fixed.table, dim, factor))

    def search(self, queries: Floats, k: int, among: NDArray[np.bool_] | None = None) -> tuple[Floats, Slots]:
        best = Best(len(queries), k)
        width = max(_SCORES // _ROWS, 1)
        for start in range(0, len(queries), width):
            part = best.part(start, start + width)
            for pile in (self._fixed, self._grown):
                pile.search(queries[start : start + width], part, among)
        return best.ordered()


def widened(vectors: Floats, dim: int, factor: float) -> Floats:
    """[N, O] -> [N, dim]: times a factor, zeros behind."""
    found = np.zeros((len(vectors), dim), vectors.dtype)
    np.multiply(vectors, vectors.dtype.type(factor), out=found[:, : vectors.shape[1]])
    return found


class Best:
    """The k best that were seen so far, by query. `scores` and `slots` [Q, k], in no order."""

    def __init__(self, queries: int, k: int) -> None:
        self.scores = np.full((queries, k), -np.inf, np.float32)
        self.slots = np.full((queries, k), -1, np.int64)
        self.seen = 0

    def part(self, start: int, stop: int) -> Best:
        """Some of the queries; what it takes is taken here."""
        found = Best(0, self.scores.shape[1])
        found.scores, found.slots = self.scores[start:stop], self.slots[start:stop]
        return found

    def take(self, scores: Floats, slots: Slots) -> None:
        """Scores [Q, B] of B more slots."""
        k = self.scores.shape[1]
        if self.seen < k:  # a first few set the mark that the others have to pass
            first = max(_FIRST, 4 * k)
            self.seen += min(first, scores.shape[1])
            self._merge(*_largest(scores[:, :first], np.broadcast_to(slots[:first], scores[:, :first].shape), k))
            scores, slots = scores[:, first:], slots[first:]
        # Most of a block lies below the k-th best so far: a comparison is cheaper than a partition.
        flat = np.flatnonzero(scores > self.scores.min(1, keepdims=True))
        if not len(flat):
            return
        query, column = np.divmod(flat, scores.shape[1])
        if len(query) > scores.size // 8:
            self._merge(*_largest(scores, np.broadcast_to(slots, scores.shape), k))
            return
        counts = np.bincount(query, minlength=len(scores))
        place = np.arange(len(query)) - np.repeat(np.cumsum(counts) - counts, counts)
        more = np.full((len(scores), int(counts.max())), -np.inf, np.float32)
        where = np.full(more.shape, -1, np.int64)
        more[query, place] = scores[query, column]
        where[query, place] = slots[column]
        self._merge(more, where)

    def ordered(self) -> tuple[Floats, Slots]:
        """Best first; equals by slot."""
        order = np.lexsort((self.slots, -self.scores), axis=1)
        scores, slots = np.take_along_axis(self.scores, order, 1), np.take_along_axis(self.slots, order, 1)
        slots[np.isneginf(scores)] = -1
        return scores, slots

    def _merge(self, scores: Floats, slots: Slots) -> None:
        both = np.concatenate([self.scores, scores], 1), np.concatenate([self.slots, slots], 1)
        self.scores[:], self.slots[:] = _largest(*both, self.scores.shape[1])


def _largest(scores: Floats, slots: Slots, k: int) -> tuple[Floats, Slots]:
    if scores.shape[1] <= k:
        return scores, slots
    best = np.argpartition(scores, scores.shape[1] - k, axis=1)[:, scores.shape[1] - k :]
    return np.take_along_axis(scores, best, 1), np.take_along_axis(slots, best, 1)


class _Pile:
    """Rows [0, count) of a table count; the table of a growing pile is longer than that by at most an eighth."""

    def __init__(self, table: Floats, first: int) -> None:
        self._table = table
        self.first = first
        """Slot of the first vector that was ever here."""
        self.count = len(table)
        self._slot = np.arange(first, first + self.count)
        self._place = np.arange(self.count)
        self._used = self.count

    def add(self, vectors: Floats) -> int:
        n, first = len(vectors), self._used
        if self.count + n > len(self._table):
            self._resize(max(self.count + n, len(self._table) * 9 // 8))
        if self._used + n > len(self._place):
            more = max(n, len(self._place) // 8)
            self._place = np.concatenate([self._place, np.full(more, -1, np.int64)])
        self._table[self.count : self.count + n] = vectors
        self._slot[self.count : self.count + n] = np.arange(self.first + first, self.first + first + n)
        self._place[first : first + n] = np.arange(self.count, self.count + n)
        self.count += n
        self._used += n
        return self.first + first

    def drop(self, slots: Slots) -> None:
        if not len(slots):
            return
        gone = self._place[slots - self.first]
        kept = self.count - len(gone)
        last = np.ones(len(gone), bool)
        last[gone[gone >= kept] - kept] = False
        holes, movers = gone[gone < kept], kept + np.flatnonzero(last)
        self._table[holes] = self._table[movers]
        self._slot[holes] = self._slot[movers]
        self._place[slots - self.first] = -1
        self._place[self._slot[holes] - self.first] = holes
        self.count = kept

    @property
    def table(self) -> Floats:
        """[count, dim] of what counts, in the order of the slots as long as nothing was dropped. Not to be kept."""
        return self._table[: self.count]

    def shrink(self) -> None:
        """Give memory back when most of the table is unused."""
        if self.count < len(self._table) // 2:
            self._resize(self.count)

    def vectors(self, slots: Slots) -> Floats:
        return self._table[self._place[slots - self.first]]

    def search(self, queries: Floats, best: Best, among: NDArray[np.bool_] | None) -> None:
        rows = max(min(_ROWS, _SCORES // max(len(queries), 1)), 1)
        for start in range(0, self.count, rows):
            stop = min(start + rows, self.count)
            slots = self._slot[start:stop]
            scores = queries @ self._table[start:stop].T
            if among is not None:
                allowed = among[slots]
                scores, slots = (scores, slots) if allowed.all() else (scores[:, allowed], slots[allowed])
            best.take(scores, slots)

    def _resize(self, rows: int) -> None:
        # In place, so that a large table is never there twice; nothing outside holds a view of it.
        self._table.resize((rows, self._table.shape[1]), refcheck=False)
        self._slot = np.concatenate([self._slot[:rows], np.full(max(rows - len(self._slot), 0), -1, np.int64)])
