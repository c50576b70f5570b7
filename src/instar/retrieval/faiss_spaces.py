"""Spaces that FAISS searches: a graph (HNSW), or cells of an inverted file.

Rows that no longer count stay where they are and are kept out by a selector. A search then looks at as many more places as it is
likely to reject, so that it finds what an index of the remaining rows alone would find; where few remain they are compared one
by one, which is then cheaper and exact.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instar.interfaces import Floats
from instar.retrieval import faiss_files
from instar.retrieval.faiss_files import Form, Held
from instar.retrieval.spaces import FlatSpace, Slots, Space

_CHEAP = 256
"""Where fewer rows than this for each place that a search keeps open are left, comparing all of them is cheaper."""


class FaissSpace(Space):
    """An HNSW graph or an inverted file, in the form of the one that the user built.

    held: a base, None for an empty space. An inverted file that is new is trained from its own first rows, as soon as there are
    39 for each cell; until then it is searched exactly.
    """

    def __init__(self, dim: int, form: Form, held: Held | None = None) -> None:
        self.dim, self._form = dim, form
        self._held = held  # owns what the index points to
        self._index: Any = form.empty(dim) if held is None else held.index
        self._keys = np.empty(0, np.int64) if held is None else held.keys
        self._in_order = held is None or form.kind == "graph"  # whether FAISS calls a vector by its slot
        self._order: NDArray[np.int64] | None = None
        self._alive = np.ones(len(self._keys), bool)
        self._flat: FlatSpace | None = FlatSpace(dim) if held is None and form.kind == "cells" else None
        self._kept: tuple[Any, ...] = ()
        if held is not None and form.kind == "cells":
            self._index.set_direct_map_type(faiss_files.library().DirectMap.Hashtable)

    def __len__(self) -> int:
        return int(self._alive.sum())

    @property
    def whole(self) -> Any:
        """A graph all of whose vectors count; else None."""
        return self._index if self._form.kind == "graph" and self._alive.all() else None

    def add(self, vectors: Floats) -> int:
        first = len(self._alive)
        self._alive = np.concatenate([self._alive, np.ones(len(vectors), bool)])
        fresh = np.arange(first, first + len(vectors)) if self._in_order else self._fresh_keys(len(vectors))
        self._keys = np.concatenate([self._keys, fresh])
        self._kept, self._order = (), None
        if self._flat is not None:
            self._flat.add(vectors)
            if len(self._flat) >= self._form.cells * faiss_files.PER_CELL:
                self._train()
        elif self._form.kind == "graph":
            self._index.add(vectors)
        else:
            self._index.add_with_ids(vectors, fresh)
        return first

    def drop(self, slots: Slots) -> None:
        self._alive[slots] = False
        self._kept = ()
        if self._flat is not None:
            self._flat.drop(slots)

    def vectors(self, slots: Slots) -> Floats:
        if self._flat is not None:
            return self._flat.vectors(slots)
        if not len(slots):
            return np.empty((0, self.dim), np.float32)
        found: Floats = self._index.reconstruct_batch(self._keys[slots])
        return found

    def search(self, queries: Floats, k: int, among: NDArray[np.bool_] | None = None) -> tuple[Floats, Slots]:
        if self._flat is not None:
            return self._flat.search(queries, k, among)
        allowed = self._alive if among is None else self._alive & among
        count = int(allowed.sum())
        share = count / max(len(allowed), 1)
        if not len(queries) or count <= k or count * share <= _CHEAP * max(self._width(), k):
            return self._one_by_one(queries, k, allowed, among is None)
        faiss = faiss_files.library()
        selector, _keep = self._selector(allowed, among is None)
        if self._form.kind == "graph":
            width = math.ceil(max(self._form.search, k) / share)
            how = faiss.SearchParametersHNSW(sel=selector, efSearch=width)
        else:
            how = faiss.SearchParametersIVF(sel=selector, nprobe=min(math.ceil(self._form.probes / share), self._index.nlist))
        scores, keys = self._index.search(queries, k, params=how)
        if self._form.metric == faiss.METRIC_L2:
            scores = 1 - scores / 2  # of unit vectors
        slots = keys if self._in_order else self._slots(keys)
        scores[slots < 0] = -np.inf
        return scores, slots

    def _width(self) -> int:
        return self._form.search if self._form.kind == "graph" else self._form.probes

    def _one_by_one(self, queries: Floats, k: int, allowed: NDArray[np.bool_], keep: bool) -> tuple[Floats, Slots]:
        if self._kept and keep and isinstance(self._kept[0], FlatSpace):
            rest, slots = self._kept
        else:
            slots = np.flatnonzero(allowed)
            rest = FlatSpace(self.dim, self.vectors(slots))
            self._kept = (rest, slots) if keep else self._kept
        scores, places = rest.search(queries, k)
        return scores, np.where(places < 0, -1, slots[places] if len(slots) else -1)

    def _selector(self, allowed: NDArray[np.bool_], keep: bool) -> tuple[Any, Any]:
        """What FAISS may find, and the memory that it points to."""
        if self._kept and keep and not isinstance(self._kept[0], FlatSpace):
            return self._kept
        faiss = faiss_files.library()
        found: tuple[Any, Any]
        if allowed.all():
            found = None, None
        elif self._in_order:
            bits = np.packbits(allowed, bitorder="little")
            found = faiss.IDSelectorBitmap(bits), bits
        elif self._keys.min() >= 0 and self._keys.max() < 64 * len(self._keys):
            mask = np.zeros(int(self._keys.max()) + 1, bool)
            mask[self._keys[allowed]] = True
            bits = np.packbits(mask, bitorder="little")
            found = faiss.IDSelectorBitmap(bits), bits
        else:
            dead = faiss.IDSelectorBatch(self._keys[~allowed])
            found = faiss.IDSelectorNot(dead), dead
        if keep:
            self._kept = found
        return found

    def _slots(self, keys: NDArray[np.int64]) -> Slots:
        if self._order is None:
            self._order = np.argsort(self._keys, kind="stable")
        places = np.searchsorted(self._keys, keys, sorter=self._order)
        return np.where(keys < 0, -1, self._order[np.minimum(places, len(self._order) - 1)])

    def _fresh_keys(self, count: int) -> NDArray[np.int64]:
        """Keys for rows that are added to an inverted file whose keys are the user's ids."""
        first = int(self._keys.max(initial=-1)) + 1
        return np.arange(first, first + count)

    def _train(self) -> None:
        """The rows so far choose the cells. FAISS seeds its clustering: every process gets the same ones."""
        assert self._flat is not None
        slots = np.flatnonzero(self._alive)
        values = self._flat.vectors(slots)
        self._index.train(values)
        self._index.set_direct_map_type(faiss_files.library().DirectMap.Hashtable)
        self._index.add_with_ids(values, slots)
        self._flat = None
