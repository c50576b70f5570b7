"""A FAISS index file that changes its encoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from instar.errors import ShapeError
from instar.interfaces import Floats, Generation, Id
from instar.retrieval import beside, checking, faiss_files
from instar.retrieval.beside import SingleFileIndex
from instar.retrieval.faiss_files import Form, Opened
from instar.retrieval.faiss_spaces import FaissSpace
from instar.retrieval.spaces import FlatSpace, Space


class FaissIndex(SingleFileIndex):
    """Flat, HNSW or IVF of full vectors, inner product or L2 (of unit vectors: the same order), with or without IndexIDMap.

    A new generation is an index of the same form in the new width, built in memory from the journal; what moved is kept out of
    the old one (see `faiss_spaces`; flat ones are searched as by `ExactIndex`, on the memory of FAISS). Scores are cosines. Ids
    are those of FAISS, or given once in a list. See `beside` for what happens to the file. `finish` writes a graph as it stands,
    and holds a second copy of the vectors where it has to build an index.
    """

    kind = "faiss"

    @classmethod
    def _empty(cls, dim: int) -> Callable[[Path], None]:
        """A flat one, of inner products."""
        index = Form("flat", faiss_files.library().METRIC_INNER_PRODUCT).empty(dim)
        return lambda path: faiss_files.write(path, index)

    @classmethod
    def adopt(
        cls,
        location: str,
        name: str = "",
        generation: Generation | None = None,
        *,
        ids: Sequence[Id] | str | Path | None = None,
    ) -> FaissIndex:
        """Stamp a file that exists: its vectors are of `generation`. The file stays as it is.

        ids: of the vectors by FAISS's own numbers (a list, or a file as for `ExactIndex.adopt`), where the file does not hold
        them. Raises StoreError for a damaged file and for quantised vectors, DataError for vectors of another length than 1.
        """
        one, place = checking.adopted(generation), Path(location).expanduser()
        held = _read(place, one.dim)
        checking.lengths(faiss_files.vectors(held), f"vectors of {place.name}")
        cls._stamp(place, one, held.names, ids)
        return cls(place)

    def _base(self) -> tuple[Space, Sequence[Id]]:
        dim = self._manifest.generations[0].dim
        held = self._reading(lambda path: _read(path, dim))
        self._form = held.form
        names = self._ids_of(held.names)
        if held.form.kind == "flat":
            return FlatSpace(dim, faiss_files.vectors(held), owner=held), names
        return FaissSpace(dim, held.form, held), names

    def _space(self, dim: int) -> Space:
        return FlatSpace(dim) if self._form.kind == "flat" else FaissSpace(dim, self._form)

    def _write_base(self, epoch: int, generation: Generation) -> Mapping[str, Any]:
        number = generation.number
        held, rows = self._standing(number)
        space, owners = held.space(number)
        # A padded graph holds old vectors at another length, also where it is no wider than they are.
        apart = self._manifest.padding is None
        as_it_is = isinstance(space, FaissSpace) and space.whole and apart
        if as_it_is:
            rows = owners.rows  # in the graph's own order
        names = held.rows.names[rows].tolist()
        numbered = beside.numbers(names)

        def part(start: int, stop: int) -> Floats:
            return held.vectors(number, rows[start:stop])

        index: Any = space.index if isinstance(space, FaissSpace) and as_it_is else None
        if index is None:
            index = faiss_files.filled(self._form, generation.dim, names, numbered, part)
        return self._recorded(epoch, ".faiss", names, numbered, lambda path: faiss_files.save(path, index, names, numbered))


def _read(place: Path, dim: int) -> Opened:
    held = faiss_files.read(place)
    if held.index.d != dim:
        raise ShapeError(f"{place} holds vectors of {held.index.d} dimensions, the generation says {dim}.")
    return held
