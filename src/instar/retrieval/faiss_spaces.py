"""Spaces that FAISS searches: a graph (HNSW), or cells of an inverted file. What no longer counts is kept out by a selector."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instar.interfaces import Floats
from instar.retrieval import faiss_files
from instar.retrieval.approximate import ApproximateSpace, Mask
from instar.retrieval.faiss_files import Form, Opened
from instar.retrieval.spaces import FlatSpace, Slots, Space, widened


class FaissSpace(ApproximateSpace):
    """An HNSW graph or an inverted file, in the form of the one that the user built.

    held: a base; None for an empty space. An inverted file that is new is trained from its own first rows, as soon as there are
    39 for each cell; until then it is searched exactly.
    """

    def __init__(self, dim: int, form: Form, held: Opened | None = None) -> None:
        cells = form.kind == "cells"
        super().__init__(dim, held.keys if held is not None and cells else None, 0 if held is None else len(held.keys))
        self._form, self._held = form, held  # which owns what the index points to
        self.index: Any = form.empty(dim) if held is None else held.index
        self._untrained: FlatSpace | None = FlatSpace(dim) if held is None and cells else None
        self._selected: tuple[int, Any] = (-1, None)
        if held is not None and cells:
            self.index.set_direct_map_type(faiss_files.library().DirectMap.Hashtable)

    def drop(self, slots: Slots) -> None:
        super().drop(slots)
        if self._untrained is not None:
            self._untrained.drop(slots)

    def vectors(self, slots: Slots) -> Floats:
        return super().vectors(slots) if self._untrained is None else self._untrained.vectors(slots)

    def search(self, queries: Floats, k: int, among: Mask | None = None) -> tuple[Floats, Slots]:
        return super().search(queries, k, among) if self._untrained is None else self._untrained.search(queries, k, among)

    def padded(self, dim: int, factor: float) -> Space:
        """A graph with the same edges: to its nodes, padding changes no order of inner products."""
        if self._form.kind != "graph":
            return super().padded(dim, factor)
        faiss = faiss_files.library()
        held = Opened(self.index, self._form, np.arange(self.index.ntotal), np.arange(self.index.ntotal), self._held)
        storage = faiss.IndexFlat(dim, faiss.METRIC_INNER_PRODUCT)
        storage.add(widened(faiss_files.vectors(held), dim, factor))
        graph = faiss.clone_index(self.index)
        graph.storage.this.own(True)  # the copied vectors go; the graph does not own what comes instead
        graph.own_fields = False
        graph.storage, graph.d, graph.metric_type = storage, dim, faiss.METRIC_INNER_PRODUCT
        graph.hnsw.is_similarity = True
        form = replace(self._form, metric=faiss.METRIC_INNER_PRODUCT)
        return FaissSpace(dim, form, replace(held, index=graph, form=form, owner=storage))

    @property
    def whole(self) -> bool:
        """Whether this is a graph all of whose vectors count."""
        return self._form.kind == "graph" and bool(self.alive.all())

    @property
    def built(self) -> bool:
        return self._untrained is None

    def save(self, path: Path) -> None:
        faiss_files.write(path, self.index)

    def restore(self, path: Path) -> None:
        held = faiss_files.read(path)
        self.index, self._held, self._untrained = held.index, held, None
        if self._form.kind == "cells":
            self.index.set_direct_map_type(faiss_files.library().DirectMap.Hashtable)

    def _insert(self, vectors: Floats, keys: NDArray[np.int64]) -> None:
        if self._untrained is not None:
            self._untrained.add(vectors)
            if len(self._untrained) >= self._form.cells * faiss_files.PER_CELL:
                self._train(len(keys))
        elif self._form.kind == "graph":
            self.index.add(vectors)
        else:
            self.index.add_with_ids(vectors, keys)

    def _train(self, last: int) -> None:
        """The rows so far choose the cells. FAISS seeds its clustering: every process gets the same ones."""
        assert self._untrained is not None
        slots = np.flatnonzero(np.concatenate([self.alive, np.ones(last, bool)]))
        values = self._untrained.vectors(slots)
        self.index.train(values)
        self.index.set_direct_map_type(faiss_files.library().DirectMap.Hashtable)
        self.index.add_with_ids(values, slots)
        self._untrained = None

    def _taken(self, keys: NDArray[np.int64]) -> Floats:
        found: Floats = self.index.reconstruct_batch(keys)
        return found

    @property
    def _width(self) -> int:
        return self._form.search if self._form.kind == "graph" else self._form.probes

    def _found(self, queries: Floats, k: int, allowed: Mask | None, share: float) -> tuple[Floats, NDArray[np.int64]]:
        faiss = faiss_files.library()
        selector, _memory = self._selector(allowed)
        if self._form.kind == "graph":
            how = faiss.SearchParametersHNSW(sel=selector, efSearch=math.ceil(max(self._form.search, k) / share))
        else:
            how = faiss.SearchParametersIVF(sel=selector, nprobe=min(math.ceil(self._form.probes / share), self.index.nlist))
        scores, keys = self.index.search(queries, k, params=how)
        return (1 - scores / 2 if self._form.metric == faiss.METRIC_L2 else scores), keys  # of unit vectors

    def _selector(self, allowed: Mask | None) -> Any:
        """What FAISS may find, and the memory that it points to; kept until something else counts."""
        if allowed is not None:
            return self._made(allowed)
        if self._selected[0] != self.version:
            self._selected = self.version, self._made(self.alive)
        return self._selected[1]

    def _made(self, allowed: Mask) -> tuple[Any, Any]:
        faiss = faiss_files.library()
        if allowed.all():
            return None, None
        keys = self._keys
        if keys is not None:
            if keys.min() < 0 or keys.max() >= 64 * len(keys):  # a bit for each would be too many
                dead = faiss.IDSelectorBatch(keys[~allowed])
                return faiss.IDSelectorNot(dead), dead
            mask = np.zeros(int(keys.max()) + 1, bool)
            mask[keys[allowed]] = True
            allowed = mask
        bits = np.packbits(allowed, bitorder="little")
        return faiss.IDSelectorBitmap(bits), bits
