"""What an index holds in memory: its rows, and the spaces in which their vectors are searched. Base and journal, applied."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from instar.errors import DataError, ShapeError, StoreError
from instar.interfaces import Floats, Generation, Hits, Id
from instar.retrieval import checking
from instar.retrieval.approximate import ApproximateSpace
from instar.retrieval.journal import Segment
from instar.retrieval.layout import Layout
from instar.retrieval.rows import Owners, Places, Rows
from instar.retrieval.snapshots import Snapshot
from instar.retrieval.spaces import Space


class Held:
    """Of a row only the vector that counts is in a space; older ones come back by reading base and journal again."""

    def __init__(
        self,
        generation: Generation,
        base: Space,
        names: Sequence[Id],
        layout: Layout,
        fresh: Callable[[int], Space],
        snapshot: tuple[Snapshot, Path] | None,
    ) -> None:
        """The base. fresh: makes an empty space of a width. snapshot: what may be taken instead of building anew."""
        self.generations = [generation]
        self.rows = Rows()
        self.begun: dict[int, int] = {}
        """Generation -> the segment that opened it."""
        self.snapshot = snapshot
        self._layout, self._fresh = layout, fresh
        key = layout.key(generation.number)
        self._spaces = {key: layout.base(base)}
        self._owners = {key: Owners()}
        rows = self.rows.enter(names)
        self._owners[key].add(0, rows)
        self.rows.put(generation.number, rows, np.arange(len(rows)))

    # What a journal says.

    def wants_vectors(self, number: int, generation: int) -> bool:
        """Whether the vectors of a segment have to be read: not those that the snapshot has."""
        if self.snapshot is None:
            return True
        last = self.snapshot[0]
        return not (last.begin < number <= last.number and self.begun.get(generation) == last.begin)

    def apply(self, number: int, segment: Segment) -> None:
        """Take in one segment, all of a journal in their order. Those that a rollback took back are left out, and it too."""
        if segment.kind == "begin":
            self._begin(number, Generation(**(segment.details or {})))
        elif segment.kind == "remove":
            rows = self.rows.known(segment.ids)
            rows = rows[rows >= 0]  # those of a generation that was rolled back later are not there at all
            self._hide(rows)
            self.rows.leave(rows)
        elif segment.kind in ("add", "move"):
            rows = self.rows.enter(segment.ids) if segment.kind == "add" else self.rows.find(segment.ids)
            self._hide(rows)
            key = self._layout.key(segment.generation)
            space = self._spaces[key]
            if segment.vectors is not None:
                first = space.add(self._layout.stored(segment.generation, segment.vectors))
            else:
                assert isinstance(space, ApproximateSpace)
                first = space.skip(len(rows))
            self._owners[key].add(first, rows)
            self.rows.put(segment.generation, rows, np.arange(first, first + len(rows)))

    def _begin(self, number: int, generation: Generation) -> None:
        self.generations.append(generation)
        self.begun[generation.number] = number
        key = self._layout.key(generation.number)
        if key not in self._spaces:
            self._spaces[key], self._owners[key] = self._fresh(generation.dim), Owners()
        if self.snapshot is not None and self.snapshot[0].begin == number:
            space = self._spaces[key]
            try:
                if not isinstance(space, ApproximateSpace):
                    raise StoreError("a flat space needs no snapshot")
                space.restore(self.snapshot[1])
            except (StoreError, ShapeError, DataError):  # it is worth nothing then: everything is built from the journal
                self._spaces[key], self.snapshot = self._fresh(generation.dim), None

    def _hide(self, rows: Places) -> None:
        """The vectors that count for these rows no longer do."""
        numbers = self.rows.current[rows]
        for number in np.unique(numbers[numbers >= 0]).tolist():
            self._spaces[self._layout.key(number)].drop(self.rows.slots(number, rows[numbers == number]))

    # What is asked of it.

    def vectors(self, generation: int, rows: Places) -> Floats:
        """The vectors [N, dim] of rows that stand in a generation."""
        space = self._spaces[self._layout.key(generation)]
        return self._layout.taken(generation, space.vectors(self.rows.slots(generation, rows)))

    def fetch(self, rows: Places) -> tuple[list[Floats], list[int]]:
        """The vectors that count, and their generations."""
        numbers = self.rows.current[rows]
        found: list[Any] = [None] * len(rows)
        for number in np.unique(numbers).tolist():
            places = np.flatnonzero(numbers == number)
            for place, vector in zip(places, self.vectors(number, rows[places]), strict=True):
                found[place] = vector
        return found, numbers.tolist()

    def nearest(self, generation: int, queries: Floats, k: int) -> Hits:
        """The nearest among the rows that stand in a generation."""
        key = self._layout.key(generation)
        owners = self._owners[key]
        found = self._layout.nearest(
            self._spaces[key], generation, queries, k, lambda: self.rows.current[owners.rows] == generation
        )
        return self._named(*found, key, k)

    def shared(self, queries: Floats, k: int) -> Hits:
        """The nearest in the space of the newest generation, whatever else stands there."""
        key = self._layout.key(self.generations[-1].number)
        return self._named(*self._spaces[key].search(queries, k), key, k)

    def space(self, generation: int) -> tuple[Space, Owners]:
        """The space that a generation is searched in, and whose rows its slots are."""
        key = self._layout.key(generation)
        return self._spaces[key], self._owners[key]

    def _named(self, scores: Floats, slots: Places, key: int, k: int) -> Hits:
        best, ids, generations = checking.empty(len(scores), k)
        there = slots >= 0
        rows = self._owners[key].rows[slots[there]]
        best[there], ids[there], generations[there] = scores[there], self.rows.names[rows], self.rows.current[rows]
        return Hits(best, ids, generations)
