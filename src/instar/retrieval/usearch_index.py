"""A usearch index file that changes its encoder."""

from __future__ import annotations

import errno
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instar.errors import DataError, ShapeError, StoreError
from instar.extras import require
from instar.interfaces import Floats, Generation, Id
from instar.retrieval import beside, checking
from instar.retrieval.approximate import ApproximateSpace, Mask
from instar.retrieval.beside import SingleFileIndex
from instar.retrieval.spaces import Slots, Space

_BLOCK = 16384
_ROUNDING = {"F32": checking.LENGTH, "F16": 2e-3, "BF16": 8e-3}
"""Numbers that vectors may be kept in, and how far from 1 the length of a rounded unit vector may lie."""


@dataclass(frozen=True)
class Form:
    """How an index is built; a new generation gets the same form in its own width."""

    metric: Any
    numbers: Any
    neighbours: int
    adding: int
    searching: int

    def empty(self, dim: int) -> Any:
        """An index without vectors."""
        return _library().Index(
            ndim=dim,
            **{"metric": self.metric, "dtype": self.numbers, "connectivity": self.neighbours},
            **{"expansion_add": self.adding, "expansion_search": self.searching},
        )


class UsearchIndex(SingleFileIndex):
    """An HNSW graph of usearch, metric cosine or inner product (of unit vectors), kept in float32, float16 or bfloat16.

    What usearch rounds is rounded here too: vectors that were moved come back exact to about 1e-3 (1e-2 for bfloat16), and scores
    with them. See `beside` for what happens to the file, and `approximate` for how rows that moved are kept out. `finish` builds
    the new graph anew, under the ids.
    """

    kind = "usearch"

    @classmethod
    def _empty(cls, dim: int) -> Callable[[Path], None]:
        """One of cosines, in float32."""
        library = _library()
        index = Form(library.MetricKind.Cos, library.ScalarKind.F32, 16, 128, 64).empty(dim)
        return lambda path: _save(index, path)

    @classmethod
    def adopt(
        cls,
        location: str,
        name: str = "",
        generation: Generation | None = None,
        *,
        ids: Sequence[Id] | str | Path | None = None,
    ) -> UsearchIndex:
        """Stamp a file that exists: its vectors are of `generation`. The file stays as it is.

        ids: a list (or a file, as for `ExactIndex.adopt`) whose places the keys are; by default the keys are the ids. Raises
        StoreError for a damaged file, another metric, and vectors of 8 bits or fewer; DataError for vectors of other lengths.
        """
        one, place = checking.adopted(generation), Path(location).expanduser()
        index, keys = _read(place, one.dim)
        for start in range(0, len(keys), _BLOCK):
            values = np.stack(index.get(keys[start : start + _BLOCK], dtype="f32"))
            checking.lengths(values, f"vectors of {place.name}", _ROUNDING[index.dtype.name])
        cls._stamp(place, one, keys, ids)
        return cls(place)

    def _base(self) -> tuple[Space, Sequence[Id]]:
        dim = self._manifest.generations[0].dim
        index, keys = self._reading(lambda path: _read(path, dim))
        self._form = Form(index.metric_kind, index.dtype, index.connectivity, index.expansion_add, index.expansion_search)
        return UsearchSpace(index, self._form, keys), self._ids_of(keys)

    def _space(self, dim: int) -> Space:
        return UsearchSpace(self._form.empty(dim), self._form)

    def _write_base(self, epoch: int, generation: Generation) -> Mapping[str, Any]:
        held, rows = self._standing(generation.number)
        names = held.rows.names[rows].tolist()
        numbered = beside.numbers(names)
        keys = np.asarray(names, np.int64) if numbered else np.arange(len(names))
        index = self._form.empty(generation.dim)
        for start in range(0, len(rows), _BLOCK):
            stop = start + _BLOCK
            _add(index, keys[start:stop], held.vectors(generation.number, rows[start:stop]))
        return self._recorded(epoch, ".usearch", names, numbered, lambda path: _save(index, path))


class UsearchSpace(ApproximateSpace):
    """The graph of one generation. keys: of a base; None for an empty one."""

    def __init__(self, index: Any, form: Form, keys: NDArray[np.int64] | None = None) -> None:
        super().__init__(int(index.ndim), keys)
        self._index, self._form = index, form

    def drop(self, slots: Slots) -> None:
        self._index.remove(self.keys(slots))
        super().drop(slots)

    def search(self, queries: Floats, k: int, among: Mask | None = None) -> tuple[Floats, Slots]:
        # usearch knows no filter: what is asked among some rows alone is compared one by one.
        return super().search(queries, k) if among is None else self._one_by_one(queries, k, self.alive & among)

    def save(self, path: Path) -> None:
        _save(self._index, path)

    def restore(self, path: Path) -> None:
        self._index, _ = _read(path, self.dim)

    def _insert(self, vectors: Floats, keys: NDArray[np.int64]) -> None:
        _add(self._index, keys, vectors)

    def _taken(self, keys: NDArray[np.int64]) -> Floats:
        found: Floats = np.stack(self._index.get(keys, dtype="f32"))
        if self._form.numbers.name != "F32":  # rounding changed their lengths a little
            found /= np.linalg.norm(found, axis=1, keepdims=True)
        return found

    @property
    def _width(self) -> int:
        return self._form.searching

    def _found(self, queries: Floats, k: int, allowed: Mask | None, share: float) -> tuple[Floats, NDArray[np.int64]]:
        self._index.expansion_search = math.ceil(max(self._form.searching, k) / share)
        scores, keys = np.full((len(queries), k), -np.inf, np.float32), np.full((len(queries), k), -1, np.int64)
        for row, found in enumerate(_lists(self._index.search(queries, k), len(queries))):
            scores[row, : len(found)], keys[row, : len(found)] = 1 - found.distances, found.keys
        return scores, keys


def _library() -> Any:
    return require("usearch.index", "usearch")


def _add(index: Any, keys: NDArray[np.int64], vectors: Floats) -> None:
    """By one thread: several at once leave, now and then, tens of vectors to which no path of the graph leads."""
    index.add(keys, vectors, threads=1)


def _save(index: Any, path: Path) -> None:
    """Raises OSError, also for the end of a file that did not fit on the disk, which usearch does not notice."""
    try:
        index.save(str(path))
    except RuntimeError as error:
        raise OSError(errno.EIO, f"usearch could not write it ({beside.reason(error)})") from error
    if path.stat().st_size != index.serialized_length:
        raise OSError(errno.ENOSPC, f"{path.stat().st_size} of {index.serialized_length} bytes were written")


def _lists(matches: Any, queries: int) -> Sequence[Any]:
    """One list a query: usearch gives a single one for a single query."""
    return [matches] if queries == 1 else matches


def _read(path: Path, dim: int) -> tuple[Any, NDArray[np.int64]]:
    """An index and its keys. Raises StoreError for what is damaged or cannot be changed, ShapeError, DataError."""
    library = _library()
    if not path.is_file():
        raise StoreError(f"There is no file {path}.")
    try:
        index = library.Index.restore(str(path))
    except (OSError, ValueError, RuntimeError, MemoryError, KeyError) as error:  # OSError: it went just now
        raise StoreError(f"{path} is no usearch index, or it is damaged ({beside.reason(error)}). Restore it.") from error
    if index is None:
        raise StoreError(f"{path} is no usearch index of vectors.")
    if index.ndim != dim:
        raise ShapeError(f"{path} holds vectors of {index.ndim} dimensions, the generation says {dim}.")
    if index.metric_kind not in (library.MetricKind.Cos, library.MetricKind.IP):
        raise StoreError(f"{path} measures by {index.metric_kind.name}; expected is cosine or inner product of unit vectors.")
    if index.dtype.name not in _ROUNDING or index.multi:
        kept = f"vectors as {index.dtype.name}" + (", several a key" if index.multi else "")
        raise StoreError(
            f"{path} keeps {kept}; expected is one a key, as F32, F16 or BF16: what is coarser does not give the vectors "
            "back that were stored. Rebuild it, or leave it as it is and query it with a head's project(x, generation)."
        )
    keys = np.asarray(index.keys).astype(np.int64) if len(index) else np.empty(0, np.int64)
    if (keys < 0).any():
        raise DataError(f"{path} has keys from 2^63 on; ids are integers of 64 bits with a sign.")
    return index, keys
