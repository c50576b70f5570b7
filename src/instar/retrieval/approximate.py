"""What spaces with a graph or cells have in common, whichever package searches them.

Rows that no longer count stay where they are and are kept out of the results. A search then keeps as many more places open as it
is likely to reject, so that it finds what an index of the remaining rows alone would find; where few remain they are compared one
by one, which is then cheaper, and exact.
"""

from __future__ import annotations

import abc
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from instar.interfaces import Floats
from instar.retrieval.spaces import FlatSpace, Slots, Space

Mask = NDArray[np.bool_]
_CHEAP = 32
"""Where fewer rows than this are left for each place that a search keeps open, all of them are compared: a graph looks at about
as many (the neighbours of a vector in its lowest layer), at random places in memory."""


class ApproximateSpace(Space):
    """`keys`: [S] what the package calls the vector of each slot; None where it calls it by its slot, and always will."""

    def __init__(self, dim: int, keys: NDArray[np.int64] | None = None, rows: int = 0) -> None:
        self.dim = dim
        self.alive: Mask = np.ones(rows if keys is None else len(keys), bool)
        self._keys = keys
        self._order: Slots | None = None
        self._rest: tuple[FlatSpace, Slots] | None = None
        self.version = 0
        """Changes with what counts."""

    # What a package does.

    @abc.abstractmethod
    def _insert(self, vectors: Floats, keys: NDArray[np.int64]) -> None:
        """Vectors [N, dim] under new keys [N]."""

    @abc.abstractmethod
    def _taken(self, keys: NDArray[np.int64]) -> Floats:
        """The vectors [N, dim] of keys, N ≥ 1."""

    @abc.abstractmethod
    def _found(self, queries: Floats, k: int, allowed: Mask | None, share: float) -> tuple[Floats, NDArray[np.int64]]:
        """Scores and keys [Q, k], −1 beyond the last.

        allowed: [S], what may be found; None for all that count. share: of the slots, that may be found.
        """

    @property
    @abc.abstractmethod
    def _width(self) -> int:
        """Places that a search keeps open where all rows count."""

    @abc.abstractmethod
    def save(self, path: Path) -> None:
        """Write what was built. Raises OSError."""

    @abc.abstractmethod
    def restore(self, path: Path) -> None:
        """Take back what `save` wrote; the slots follow by `skip`. Raises StoreError."""

    @property
    def built(self) -> bool:
        """Whether there is something to save."""
        return True

    # What follows from it.

    def skip(self, count: int) -> int:
        """The next slots belong to vectors that `restore` brought; returns the first of them."""
        first = len(self.alive)
        self.alive = np.concatenate([self.alive, np.ones(count, bool)])
        self._changed()
        return first

    def __len__(self) -> int:
        return int(self.alive.sum())

    def add(self, vectors: Floats) -> int:
        first = len(self.alive)
        keys = np.arange(first, first + len(vectors))
        if self._keys is not None:  # the user's own: go on behind the largest
            keys += int(self._keys.max(initial=-1)) + 1 - first
            self._keys = np.concatenate([self._keys, keys])
        self._insert(vectors, keys)
        self.alive = np.concatenate([self.alive, np.ones(len(vectors), bool)])
        self._changed()
        return first

    def drop(self, slots: Slots) -> None:
        self.alive[slots] = False
        self._changed()

    def vectors(self, slots: Slots) -> Floats:
        return self._taken(self.keys(slots)) if len(slots) else np.empty((0, self.dim), np.float32)

    def keys(self, slots: Slots) -> NDArray[np.int64]:
        """What the package calls these slots."""
        return slots if self._keys is None else self._keys[slots]

    def search(self, queries: Floats, k: int, among: Mask | None = None) -> tuple[Floats, Slots]:
        allowed = self.alive if among is None else self.alive & among
        count = int(allowed.sum())
        share = count / max(len(allowed), 1)
        if not len(queries) or count <= k or count * share <= _CHEAP * max(self._width, k):
            return self._one_by_one(queries, k, None if among is None else allowed)
        scores, keys = self._found(queries, k, None if among is None else allowed, share)
        slots = self._slots(keys)
        scores[slots < 0] = -np.inf
        return scores, slots

    def _one_by_one(self, queries: Floats, k: int, allowed: Mask | None) -> tuple[Floats, Slots]:
        rest = self._rest if allowed is None else None
        if rest is None:
            slots = np.flatnonzero(self.alive if allowed is None else allowed)
            rest = FlatSpace(self.dim, self.vectors(slots)), slots
            self._rest = rest if allowed is None else self._rest
        scores, places = rest[0].search(queries, k)
        return scores, np.where(places < 0, -1, rest[1][places] if len(rest[1]) else -1)

    def _slots(self, keys: NDArray[np.int64]) -> Slots:
        """The slots of what a package found, −1 for −1; other negative numbers may be keys of the user's own."""
        if self._keys is None:
            return keys
        if not len(self._keys):
            return np.full_like(keys, -1)
        if self._order is None:
            self._order = np.argsort(self._keys, kind="stable")
        places = np.searchsorted(self._keys, keys, sorter=self._order)
        slots = self._order[np.minimum(places, len(self._order) - 1)]
        return np.where(self._keys[slots] == keys, slots, -1)

    def _changed(self) -> None:
        self._rest, self._order = None, None
        self.version += 1
