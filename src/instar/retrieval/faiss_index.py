"""A FAISS index file that changes its encoder."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from instar import files
from instar.errors import GenerationError, ShapeError, StoreError
from instar.interfaces import Floats, Generation, Id
from instar.retrieval import checking, exact, faiss_files, journal, manifest, tables
from instar.retrieval.faiss_files import Form, Held
from instar.retrieval.faiss_spaces import FaissSpace
from instar.retrieval.journalled import JournalledIndex
from instar.retrieval.spaces import FlatSpace, Space


class FaissIndex(JournalledIndex):
    """Flat, HNSW or IVF of full vectors, inner product or L2 (of unit vectors: the same order), with or without IndexIDMap.

    The file stays as it is until `finish` replaces it; manifest and journal stand beside it in `FILE.instar/`. A new generation
    is an index of the same form in the new width, built in memory from the journal; what moved is kept out of the old one (see
    `faiss_spaces`; flat ones are searched as by `ExactIndex`, on the memory of FAISS). Scores are cosines. Ids are those of
    FAISS, or given once in a list.
    """

    kind = "faiss"

    def __init__(self, file: str | Path, *, readonly: bool = False) -> None:
        faiss_files.library()
        place = Path(file).expanduser()
        super().__init__(place, beside(place), readonly=readonly)

    @classmethod
    def open(cls, location: str, name: str = "", *, create: Generation | None = None, readonly: bool = False) -> FaissIndex:
        """Open a file. create: the generation of a flat inner-product index without rows that is made where there is none.

        Raises GenerationError for a file without a stamp, or whose oldest generation is not `create`; StoreError.
        """
        place = Path(location).expanduser()
        if create is not None and not place.exists() and not (beside(place) / manifest.NAME).exists():
            files.folder(place.parent)
            faiss = faiss_files.library()
            _written(place, Form("flat", faiss.METRIC_INNER_PRODUCT).empty(create.dim), [])
            cls.adopt(location, name, create).close()
        found: FaissIndex = exact.created(cls(place, readonly=readonly), create)
        return found

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
        if generation is None:
            raise GenerationError("Adopting expects the generation, with the fingerprint of the encoder that made the vectors.")
        checking.described(generation)
        place = Path(location).expanduser()
        held = faiss_files.read(place)
        if held.index.d != generation.dim:
            raise ShapeError(f"{place} holds vectors of {held.index.d} dimensions, the generation says {generation.dim}.")
        checking.lengths(faiss_files.vectors(held), f"vectors of {place.name}")
        folder = files.folder(beside(place))
        try:
            listed = None
            if ids is not None:
                _positions(held, len(held.keys))
                names = tables.names(ids, folder, len(held.keys))
                listed = tables.write_names(folder / "base-0000000.ids.json", names)
            base = {"file": manifest.print_of(place), "pending": None, "ids": listed, "rows": len(held.keys)}
        except OSError as error:
            raise StoreError(f"The stamp could not be written to {folder}: {error.strerror}. The file is as it was.") from error
        manifest.start(folder, tables.new(cls.kind, generation, base))
        return cls(place)

    def _base(self) -> tuple[Space, Sequence[Id]]:
        base = self._manifest.base
        path = self._path()
        manifest.unchanged(path, base["file"])
        held = faiss_files.read(path)
        dim = self._manifest.generations[0].dim
        if held.index.d != dim:
            raise StoreError(f"{path} holds vectors of {held.index.d} dimensions, expected {dim}.")
        self._form = held.form
        names: Sequence[Id] = held.names.tolist()
        if base["ids"] is not None:
            manifest.unchanged(self.folder / str(base["ids"]["name"]), base["ids"])
            listed = tables.read_names(self.folder / str(base["ids"]["name"]))
            names = [listed[place] for place in _positions(held, len(listed))]
        if held.form.kind == "flat":
            return FlatSpace(dim, faiss_files.vectors(held), owner=held), names
        return FaissSpace(dim, held.form, held), names

    def _space(self, dim: int) -> Space:
        return FlatSpace(dim) if self._form.kind == "flat" else FaissSpace(dim, self._form)

    def _write_base(self, epoch: int, generation: Generation) -> Mapping[str, Any]:
        rows = self._rows.standing(generation.number)
        space = self._spaces[generation.number]
        index = space.whole if isinstance(space, FaissSpace) else None
        if index is not None and index.ntotal == len(rows):
            rows = self._owners[generation.number].rows  # the graph is written as it is, in its own order
        else:
            index = None
        names = self._rows.names[rows].tolist()
        if index is None:

            def part(start: int, stop: int) -> Floats:
                return self._vectors(generation.number, rows[start:stop])

            index = faiss_files.filled(self._form, generation.dim, names, part)
        path = self.folder / f"base-{epoch:07d}.faiss"
        inside = _written(path, index, names)
        listed = None if inside else tables.write_names(self.folder / f"base-{epoch:07d}.ids.json", names)
        return {"file": manifest.print_of(path), "pending": path.name, "ids": listed, "rows": len(names)}

    def _settle(self) -> None:
        base = self._manifest.base
        if base["pending"] and (self.folder / str(base["pending"])).exists():
            os.replace(self.folder / str(base["pending"]), self.place)  # noqa: PTH105
            journal.sync(self.place.parent)
        kept = base["ids"]["name"] if base["ids"] else None
        for path in self.folder.glob("base-*"):
            if path.name != kept:
                path.unlink(missing_ok=True)

    def _path(self) -> Path:
        """Where the base is: a finished one goes to the user's place right after the manifest names it."""
        pending = self._manifest.base["pending"]
        if pending and (self.folder / str(pending)).exists():
            return self.folder / str(pending)
        return self.place


def beside(place: Path) -> Path:
    """The folder of manifest and journal of an index that is one file."""
    return place.with_name(f"{place.name}.instar")


def _positions(held: Held, count: int) -> list[int]:
    """Slot -> place in a list of ids outside the file: the number by which FAISS finds the vector. Raises StoreError."""
    if sorted(found := held.names.tolist()) != list(range(count)):
        raise StoreError(
            f"A list of {count} ids names the vectors 0 … {count - 1}, but the file holds {len(found)} under numbers of their own; "
            "leave the list out to use those."
        )
    return found


def _written(path: Path, index: Any, names: Sequence[Id]) -> bool:
    try:
        return faiss_files.write(path, index, names)
    except OSError as error:
        raise StoreError(f"{path} could not be written: {error.strerror}. Nothing has changed.") from error
