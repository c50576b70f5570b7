"""Exact search over vectors in a folder: the oracle of every other index, and enough for a million rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from instar.errors import GenerationError, StoreError
from instar.interfaces import Floats, Generation, Id
from instar.retrieval import checking, manifest, stamping, tables
from instar.retrieval.journalled import JournalledIndex
from instar.retrieval.spaces import FlatSpace, Space

_BLOCK = 16384


class ExactIndex(JournalledIndex):
    """Every vector is compared: score = ⟨q, v⟩, the cosine of unit vectors.

    A folder with a table of float32 (`.npy`), its ids (JSON), a manifest and a journal (see `retrieval.journalled`). The table is
    mapped, so that readers in many processes share its pages; a generation is searched by one matrix product in blocks over the
    rows that stand in it. Search is O(Q N dim); in memory are the counting vector of each row once, and about 100 bytes a row.
    """

    kind = "exact"

    @classmethod
    def _vacant(cls, place: Path) -> bool:
        stamped = (place / manifest.NAME).exists()
        if not stamped and ((place / "vectors.npy").exists() or tables.rows(place / "base-0000000.npy")):
            raise GenerationError(f"{place} holds vectors without a stamp; adopt them instead of creating an index there.")
        return not stamped

    @classmethod
    def _create(cls, place: Path, generation: Generation) -> None:
        cls.adopt(str(place), "", generation, vectors=np.empty((0, generation.dim), np.float32), ids=[]).close()

    @classmethod
    def adopt(
        cls,
        location: str,
        name: str = "",
        generation: Generation | None = None,
        *,
        vectors: Floats | str | Path | None = None,
        ids: Sequence[Id] | str | Path | None = None,
    ) -> ExactIndex:
        """Stamp vectors that exist as those of `generation`.

        location: the folder. vectors: float32 [N, dim] of length 1, or their .npy; by default `vectors.npy` of the folder, which
        then is the base as it is, until `finish`; that leaves it alone and writes a table of its own. ids: [N], or a file: JSON
        list, .npy, or text with one a line; by default `ids.json`, `ids.npy` or `ids.txt` of the folder, else the numbers of
        the rows.
        Raises ShapeError, DataError for bad vectors or ids, StoreError.
        """
        generation = checking.adopted(generation)
        folder = Path(location).expanduser()
        manifest.vacant(folder)
        source = folder / "vectors.npy" if vectors is None else vectors
        table = tables.table(source, generation.dim)
        names = tables.names(ids, folder, len(table))
        with stamping.alone(folder):
            if not isinstance(source, np.ndarray) and Path(source).resolve().parent == folder.resolve():
                stamp = manifest.print_of(Path(source))
            else:
                stamp = tables.write(folder / "base-0000000.npy", len(table), generation.dim, [table])
            base = {"vectors": stamp, "ids": tables.write_names(folder / "base-0000000.ids.json", names), "rows": len(table)}
            manifest.write(folder, tables.new(cls.kind, generation, base))
        return cls(folder)

    def _base(self) -> tuple[Space, Sequence[Id]]:
        paths = [self.folder / str(self._manifest.base[part]["name"]) for part in ("vectors", "ids")]
        for path, part in zip(paths, ("vectors", "ids"), strict=True):
            manifest.unchanged(path, self._manifest.base[part])
        dim = self._manifest.generations[0].dim
        try:
            # A private map: rows are moved about in it, the file stays as it is. A map of nothing is refused by the system.
            table = np.load(paths[0], mmap_mode="c") if self._manifest.base["rows"] else np.empty((0, dim), np.float32)
        except (OSError, ValueError, EOFError) as error:
            raise StoreError(f"{paths[0]} cannot be read: {error}. Restore it from a backup.") from error
        names = tables.read_names(paths[1])
        if table.dtype != np.float32 or table.shape != (len(names), dim):
            raise StoreError(f"{paths[0]} holds {table.dtype} {list(table.shape)}, expected float32 [{len(names)}, {dim}].")
        return FlatSpace(dim, np.asarray(table)), names

    def _space(self, dim: int) -> Space:
        return FlatSpace(dim)

    def _write_base(self, epoch: int, generation: Generation) -> Mapping[str, Any]:
        held, rows = self._standing(generation.number)
        parts = (held.vectors(generation.number, rows[at : at + _BLOCK]) for at in range(0, len(rows), _BLOCK))
        return {
            "vectors": tables.write(self.folder / f"base-{epoch:07d}.npy", len(rows), generation.dim, parts),
            "ids": tables.write_names(self.folder / f"base-{epoch:07d}.ids.json", held.rows.names[rows].tolist()),
            "rows": len(rows),
        }

    def _settle(self) -> None:
        kept = {str(self._manifest.base[part]["name"]) for part in ("vectors", "ids")}
        for path in tables.bases(self.folder):
            if path.name not in kept:
                path.unlink(missing_ok=True)
