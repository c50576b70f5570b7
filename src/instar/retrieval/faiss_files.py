"""FAISS index files: which kinds can change their encoder, what vectors and ids they hold, and how they are written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from instar.errors import DataError, StoreError
from instar.extras import require
from instar.interfaces import Floats, Id
from instar.retrieval import beside

_BLOCK = 16384
_PIECE = 1 << 20
"""Bytes written at a time."""
PER_CELL = 39
"""Rows that FAISS wants to train a cell of an inverted file from."""

Kind = Literal["flat", "graph", "cells"]


@dataclass(frozen=True)
class Form:
    """How an index is built; a new generation gets the same form in its own width."""

    kind: Kind
    metric: int
    neighbours: int = 0
    construction: int = 0
    search: int = 0
    """graph: M, efConstruction, efSearch."""
    cells: int = 0
    probes: int = 0
    """cells: nlist, nprobe."""

    def empty(self, dim: int, rows: int | None = None) -> Any:
        """An index without vectors. rows: how many it is for: an inverted file of fewer rows gets fewer cells."""
        faiss = library()
        if self.kind == "flat":
            return faiss.IndexFlat(dim, self.metric)
        if self.kind == "graph":
            made = faiss.IndexHNSWFlat(dim, self.neighbours, self.metric)
            made.hnsw.efConstruction, made.hnsw.efSearch = self.construction, self.search
            return made
        cells = self.cells if rows is None else max(min(self.cells, rows // PER_CELL), 1)
        made = faiss.IndexIVFFlat(faiss.IndexFlat(dim, self.metric), dim, cells, self.metric)
        made.nprobe = min(self.probes, cells)
        return made


@dataclass(frozen=True)
class Opened:
    """What a file holds."""

    index: Any
    """Without the map of ids, if there was one."""
    form: Form
    keys: NDArray[np.int64]
    """[N] slot -> what `index` itself calls it."""
    names: NDArray[np.int64]
    """[N] slot -> id, as the file says."""
    owner: Any
    """What has to live as long as `index`."""


def library() -> Any:
    """The package. Raises MissingExtraError."""
    return require("faiss", "faiss")


def read(path: Path) -> Opened:
    """Raises StoreError for a file that is damaged, or of a kind whose vectors cannot be taken out exactly."""
    faiss = library()
    if not path.is_file():
        raise StoreError(f"There is no file {path}.")
    try:
        outer = faiss.read_index(str(path))
    except (OSError, RuntimeError, MemoryError) as error:
        raise StoreError(f"{path} is no FAISS index, or it is damaged ({beside.reason(error)}). Restore it.") from error
    names = None
    if isinstance(outer, faiss.IndexIDMap):  # IndexIDMap2 is one
        names = faiss.vector_to_array(outer.id_map).copy()
        index = faiss.downcast_index(outer.index)
    else:
        index = outer
    form = _form(faiss, index, path)
    if form.kind == "cells":
        keys = _keys_of_cells(faiss, index)
        names = keys if names is None else names[keys]
    else:
        keys = np.arange(index.ntotal, dtype=np.int64)
        names = keys if names is None else names
    if not len(keys) == len(names) == index.ntotal or len(np.unique(names)) != len(names):
        raise StoreError(
            f"{path} names {len(np.unique(names))} different ids for {index.ntotal} vectors; each row needs its own."
        )
    return Opened(index, form, keys, names, outer)


def vectors(held: Opened) -> Floats:
    """All vectors [N, dim], by slot: of flat indexes and graphs a view into the index, which has to outlive it."""
    faiss = library()
    n, dim = held.index.ntotal, held.index.d
    if held.form.kind == "cells":
        lists = held.index.invlists
        found = np.empty((n, dim), np.float32)
        at = 0
        for cell in range(held.index.nlist):
            size = lists.list_size(cell)
            if size:
                codes = faiss.rev_swig_ptr(lists.get_codes(cell), size * dim * 4)
                found[at : at + size] = codes.view(np.float32).reshape(size, dim)
            at += size
        return found
    storage = held.index if held.form.kind == "flat" else faiss.downcast_index(held.index.storage)
    if not n:
        return np.empty((0, dim), np.float32)
    view: Floats = faiss.rev_swig_ptr(storage.get_xb(), n * dim).reshape(n, dim)
    return view


def save(path: Path, index: Any, ids: Sequence[Id], numbered: bool) -> None:
    """Write an index, in a map of its ids where it needs one: not for ids 0 … N − 1, and an inverted file holds its own.

    numbered: whether the ids are numbers; otherwise they stand in a list elsewhere. Raises OSError.
    """
    faiss = library()
    if numbered and not isinstance(index, faiss.IndexIVF) and list(ids) != list(range(len(ids))):
        wrapped = faiss.IndexIDMap2(faiss.IndexFlat(index.d, index.metric_type))  # takes an empty one alone
        wrapped.index, wrapped.ntotal = index, index.ntotal
        faiss.copy_array_to_vector(np.asarray(ids, np.int64), wrapped.id_map)
        wrapped.construct_rev_map()
        index = wrapped
    write(path, index)


def write(path: Path, index: Any) -> None:
    """Write an index as it is. Raises OSError; FAISS's own writing would not notice that the end did not fit on the disk."""
    faiss = library()
    with path.open("wb") as file:
        faiss.write_index(index, faiss.PyCallbackIOWriter(file.write, _PIECE))


def filled(form: Form, dim: int, ids: Sequence[Id], numbered: bool, part: Callable[[int, int], Floats]) -> Any:
    """A new index of a form with rows `part(start, stop)` [stop − start, dim] for every piece of the ids."""
    n = len(ids)
    index = form.empty(dim, n)
    if form.kind == "cells" and n:
        step = max(n // (256 * index.nlist), 1)
        index.train(np.concatenate([part(at, at + 1) for at in range(0, n, step)]) if step > 1 else part(0, n))
    for start in range(0, n, _BLOCK):
        stop = min(start + _BLOCK, n)
        if form.kind == "cells" and numbered:
            index.add_with_ids(part(start, stop), np.asarray(ids[start:stop], np.int64))
        else:
            index.add(part(start, stop))
    return index


def _form(faiss: Any, index: Any, path: Path) -> Form:
    kind = type(index).__name__
    if index.metric_type not in (faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2):
        raise StoreError(f"{path} measures by FAISS metric {index.metric_type}; expected inner product or L2 (of unit vectors).")
    if kind in ("IndexFlat", "IndexFlatIP", "IndexFlatL2"):
        return Form("flat", index.metric_type)
    if kind == "IndexHNSWFlat":
        hnsw = index.hnsw
        return Form("graph", index.metric_type, hnsw.nb_neighbors(1), hnsw.efConstruction, hnsw.efSearch)
    if kind == "IndexIVFFlat":
        return Form("cells", index.metric_type, cells=index.nlist, probes=index.nprobe)
    raise StoreError(
        f"{path} is an {kind}: known are flat, HNSW and IVF of full vectors (IndexFlat, IndexHNSWFlat, IndexIVFFlat, also in an "
        "IndexIDMap). What is quantised does not give back the vectors that were stored, so nothing of a change could be "
        "checked: rebuild it from the full vectors, or leave it as it is and query it with a head's project(x, generation)."
    )


def _keys_of_cells(faiss: Any, index: Any) -> NDArray[np.int64]:
    lists = index.invlists
    parts = [
        faiss.rev_swig_ptr(lists.get_ids(cell), lists.list_size(cell)).copy()
        for cell in range(index.nlist)
        if lists.list_size(cell)
    ]
    found = np.concatenate(parts) if parts else np.empty(0, np.int64)
    if len(np.unique(found)) != len(found):
        raise DataError(f"{len(found) - len(np.unique(found))} ids stand in the inverted file twice; each row needs its own.")
    if (found == -1).any():  # FAISS drops it from its own results
        raise DataError(
            "A vector of the inverted file has the id −1, by which FAISS means nothing: it is never found. Give it another."
        )
    return found
