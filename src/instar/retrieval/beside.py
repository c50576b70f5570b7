"""An index that is one file of another package: manifest and journal stand in a folder beside it.

`FILE` stays as it is until `finish`, which writes the new one into the folder, names it in the manifest, and only then puts it in
the place of the old one. Killed between the two, readers take it from the folder, and the next writer moves it.
"""

from __future__ import annotations

import abc
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from instar.errors import StoreError
from instar.interfaces import Generation, Id
from instar.retrieval import journal, manifest, stamping, tables
from instar.retrieval.journalled import JournalledIndex

Read = TypeVar("Read")


class SingleFileIndex(JournalledIndex, abc.ABC):
    """The package calls a vector by a number. Ids are these numbers, or stand in a list, at the place that the number says."""

    @staticmethod
    def _folder_of(place: Path) -> Path:
        return place.with_name(f"{place.name}.instar")

    @classmethod
    def _vacant(cls, place: Path) -> bool:
        return not place.exists() and not (cls._folder_of(place) / manifest.NAME).exists()

    @classmethod
    @abc.abstractmethod
    def _empty(cls, dim: int) -> Callable[[Path], None]:
        """Writes a file of an index without vectors to a path. It raises OSError."""

    @classmethod
    def _create(cls, place: Path, generation: Generation) -> None:
        folder = cls._folder_of(place)
        with stamping.alone(folder):
            if place.exists():
                raise StoreError(f"{place} was made by another program at this moment; adopt it, or take another place.")
            # As at an end: the file comes to its place when the stamp names it, so that nobody meets it without one.
            path = folder / f"base-0000000.{cls.kind}"
            base = {"file": tables.placed_by(path, cls._empty(generation.dim)), "pending": path.name, "ids": None, "rows": 0}
            manifest.write(folder, tables.new(cls.kind, generation, base))
            os.replace(path, place)  # noqa: PTH105

    @classmethod
    def _stamp(
        cls, place: Path, generation: Generation, numbers: NDArray[np.int64], ids: Sequence[Id] | str | Path | None
    ) -> None:
        """Write the manifest of a file that exists. Raises StoreError, DataError."""
        folder, listed = cls._folder_of(place), None
        with stamping.alone(folder):
            if ids is not None:
                _places(numbers, len(numbers), place)
                listed = tables.write_names(folder / "base-0000000.ids.json", tables.names(ids, folder, len(numbers)))
            base = {"file": manifest.print_of(place), "pending": None, "ids": listed, "rows": len(numbers)}
            manifest.write(folder, tables.new(cls.kind, generation, base))

    def _current(self) -> Path:
        """Where the base is. Raises StoreError when it is not the one that was stamped."""
        pending = self._manifest.base["pending"]
        path = self.folder / str(pending) if pending and (self.folder / str(pending)).exists() else self.place
        manifest.unchanged(path, self._manifest.base["file"])
        return path

    def _reading(self, read: Callable[[Path], Read]) -> Read:
        """What `read` makes of the base; once more where that came to its place meanwhile, as it does when an index is made."""
        pending = self.folder / str(self._manifest.base["pending"])
        waits = pending.exists()
        try:
            return read(self._current())
        except StoreError:
            if not waits or pending.exists():
                raise
            return read(self._current())

    def _ids_of(self, numbers: NDArray[np.int64]) -> Sequence[Id]:
        """The ids of what the package calls by these numbers. Raises StoreError."""
        listed = self._manifest.base["ids"]
        if listed is None:
            found: list[Id] = numbers.tolist()
            return found
        path = self.folder / str(listed["name"])
        manifest.unchanged(path, listed)
        names = tables.read_names(path)
        return [names[place] for place in _places(numbers, len(names), path)]

    def _recorded(
        self, epoch: int, suffix: str, names: Sequence[Id], numbered: bool, save: Callable[[Path], None]
    ) -> Mapping[str, Any]:
        """What the manifest says of a new base of rows with these ids. numbered: whether the file itself holds them.

        Raises OSError, and StoreError where another program has written to the file, which would be lost.
        """
        self._current()
        path = self.folder / f"base-{epoch:07d}{suffix}"
        tables.placed_by(path, save)
        listed = None if numbered else tables.write_names(self.folder / f"base-{epoch:07d}.ids.json", names)
        return {"file": manifest.print_of(path), "pending": path.name, "ids": listed, "rows": len(names)}

    def _settle(self) -> None:
        base = self._manifest.base
        if base["pending"] and (self.folder / str(base["pending"])).exists():
            os.replace(self.folder / str(base["pending"]), self.place)  # noqa: PTH105
            journal.sync(self.place.parent)
        kept = base["ids"]["name"] if base["ids"] else None
        for path in tables.bases(self.folder):
            if path.name != kept:
                path.unlink(missing_ok=True)


def numbers(names: Sequence[Id]) -> bool:
    """Whether these ids can be numbers of a package: integers from 0."""
    return all(isinstance(one, int) and one >= 0 for one in names)


def reason(error: Exception) -> str:
    """What a package says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]


def _places(found: NDArray[np.int64], count: int, path: Path) -> list[int]:
    """Numbers as places in a list of `count` ids. Raises StoreError."""
    places: list[int] = found.tolist()
    if sorted(places) != list(range(count)):
        raise StoreError(
            f"{path}: a list of {count} ids names vectors 0 … {count - 1}, but the index holds {len(places)} under other "
            "numbers; leave the list out to use those as ids."
        )
    return places
