"""Which row stands where: a number for each id, and its slot in the space of every generation that it has a vector of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from instar.errors import DataError
from instar.interfaces import Id
from instar.retrieval import checking

Places = NDArray[np.int64]
"""[N] numbers of rows, or slots."""


class Rows:
    """Rows are numbered in the order in which they came and keep their number, also when they go and come again."""

    def __init__(self) -> None:
        self._number: dict[Id, int] = {}
        self.names: NDArray[np.object_] = np.empty(0, object)
        """Row -> id. Longer than the rows there are."""
        self.current = np.empty(0, np.int64)
        """Row -> generation of the vector that counts; −1 when it is gone."""
        self._slots: dict[int, Places] = {}

    def __len__(self) -> int:
        return len(self._number)

    def known(self, ids: Sequence[Id]) -> Places:
        """[N], −1 for an id that is not there."""
        found = np.fromiter((self._number.get(one, -1) for one in ids), np.int64, len(ids))
        inside = found >= 0
        found[inside] = np.where(self.current[found[inside]] >= 0, found[inside], -1)
        return found

    def find(self, ids: Sequence[Id]) -> Places:
        """[N]. Raises DataError for ids that are not there."""
        found = self.known(ids)
        if lost := [one for one, place in zip(ids, found, strict=True) if place < 0]:
            raise DataError(f"{len(lost)} of {len(ids)} ids are not in the index: {checking.some(lost)}. Nothing was changed.")
        return found

    def enter(self, ids: Sequence[Id]) -> Places:
        """Numbers for new rows [N]; one that was there before gets its old number."""
        before = len(self._number)
        found = np.fromiter((self._number.setdefault(one, len(self._number)) for one in ids), np.int64, len(ids))
        self._reserve(len(self._number))
        if before == 0 and len(self._number) == len(ids):
            self.names[: len(ids)] = ids
        else:
            fresh = found >= before
            self.names[found[fresh]] = np.fromiter((one for one, f in zip(ids, fresh, strict=True) if f), object)
        return found

    def slots(self, generation: int, rows: Places) -> Places:
        """[N], −1 where a row has no vector of a generation."""
        held = self._slots.get(generation)
        return np.full(len(rows), -1, np.int64) if held is None else held[rows]

    def put(self, generation: int, rows: Places, slots: Places) -> None:
        """These rows now have a vector of a generation, and it counts."""
        if generation not in self._slots:
            self._slots[generation] = np.full(len(self.current), -1, np.int64)
        self._slots[generation][rows] = slots
        self.current[rows] = generation

    def leave(self, rows: Places) -> None:
        """These rows are gone, in every generation."""
        for held in self._slots.values():
            held[rows] = -1
        self.current[rows] = -1

    def standing(self, generation: int) -> Places:
        """Rows whose counting vector is of a generation, in the order of their numbers."""
        return np.flatnonzero(self.current[: len(self)] == generation)

    def newborn(self, generation: int) -> list[Id]:
        """Ids that stand in a generation and have no vector of an older one."""
        rows = self.standing(generation)
        older = np.zeros(len(rows), bool)
        for number in self._slots:
            if number < generation:
                older |= self.slots(number, rows) >= 0
        return list(self.names[rows[~older]])

    def page(self, generation: int, after: Id | None, limit: int) -> list[Id]:
        """See `Index.ids`. Raises DataError for an `after` that never was there."""
        if after is not None and after not in self._number:
            raise DataError(
                f"The id {checking.shown(after)} is not in the index, so no page comes after it; begin again without `after`."
            )
        start = 0 if after is None else self._number[after] + 1
        found: list[Id] = []
        while len(found) < limit and start < len(self):  # by pieces: the rest of a million rows is not looked at for one page
            stop = min(start + max(limit, 65536), len(self))
            found += self.names[start:stop][self.current[start:stop] == generation].tolist()
            start = stop
        return found[:limit]

    def counts(self, generations: Iterable[int]) -> dict[int, int]:
        """Generation -> rows that stand in it."""
        kept = self.current[: len(self)]
        held = np.bincount(kept[kept >= 0])
        return {g: int(held[g]) if g < len(held) else 0 for g in generations}

    def _reserve(self, size: int) -> None:
        if size <= len(self.current):
            return
        more = max(size, len(self.current) * 9 // 8 if len(self.current) > 4096 else 2 * len(self.current)) - len(self.current)
        self.names = np.concatenate([self.names, np.full(more, None, object)])
        self.current = np.concatenate([self.current, np.full(more, -1, np.int64)])
        self._slots = {g: np.concatenate([held, np.full(more, -1, np.int64)]) for g, held in self._slots.items()}


class Owners:
    """Slot -> row of one space, growing."""

    def __init__(self) -> None:
        self._rows = np.empty(0, np.int64)
        self._count = 0

    def add(self, first: int, rows: Places) -> None:
        """Slots from `first` on belong to these rows."""
        self._count = first + len(rows)
        if self._count > len(self._rows):
            grown = np.full(max(self._count, len(self._rows) * 9 // 8), -1, np.int64)
            grown[: len(self._rows)] = self._rows
            self._rows = grown
        self._rows[first : self._count] = rows

    @property
    def rows(self) -> Places:
        """[slots]."""
        return self._rows[: self._count]
