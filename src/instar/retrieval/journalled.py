"""An index on this machine: a base that is never touched, and a journal of what changed since.

Base and journal together are the index. What they say is held in memory: the spaces of the generations, and `Rows`. Every call
first takes in what other processes did since (two small reads and a failed `stat` where nothing happened), so that one search
sees one state. A kind of index (`exact`, `faiss_index`, `usearch_index`) says how its base is read and written, and what spaces
it searches; nothing else.

    FOLDER/manifest.json        which encoders, which base, which segments count
    FOLDER/lock                 held by the one writer
    FOLDER/0000000001.segment   …
"""

from __future__ import annotations

import abc
import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from instar.errors import DataError, GenerationError, StoreError
from instar.interfaces import Floats, Fusion, Generation, Hits, Id, Index
from instar.retrieval import checking, manifest
from instar.retrieval.journal import Journal, Segment
from instar.retrieval.layout import Apart, Layout
from instar.retrieval.rows import Owners, Places, Rows
from instar.retrieval.spaces import Space

_ATTEMPTS = 8


class JournalledIndex(Index, abc.ABC):
    """See the module. `place`: the index as the user names it; `folder`: where manifest and journal stand.

    May be used by several threads, one at a time; not across a fork. Raises GenerationError for an index without a manifest,
    StoreError for files that cannot be used.
    """

    kind: ClassVar[str]

    def __init__(self, place: Path, folder: Path, *, readonly: bool = False) -> None:
        self.place, self.folder = place, folder
        self._readonly = readonly
        self._guard = threading.RLock()
        self._depth = 0
        self._closed = False
        self._content: bytes | None = None
        self._journal: Journal | None = None
        with self._now():
            pass

    # What a kind of index says.

    @abc.abstractmethod
    def _base(self) -> tuple[Space, Sequence[Id]]:
        """The base that the manifest names: its space, and the id of each slot. Raises StoreError."""

    @abc.abstractmethod
    def _space(self, dim: int) -> Space:
        """An empty space for a new generation."""

    @abc.abstractmethod
    def _write_base(self, epoch: int, generation: Generation) -> Mapping[str, Any]:
        """Write all rows as a new base beside the old one, durably; returns what the manifest says of it. Raises OSError."""

    @abc.abstractmethod
    def _settle(self) -> None:
        """Put the manifest's base in its place and delete every other one. May be interrupted and repeated. Raises OSError."""

    # What is read.

    def generations(self) -> list[Generation]:
        with self._now():
            return list(self._generations)

    def counts(self) -> dict[int, int]:
        with self._now():
            return self._rows.counts(g.number for g in self._generations)

    def ids(self, generation: int, *, after: Id | None = None, limit: int = 10_000) -> list[Id]:
        with self._now():
            checking.among(self._generations, generation)
            return self._rows.page(generation, after, limit)

    def fetch(self, ids: Sequence[Id]) -> tuple[list[Floats], list[int]]:
        names = checking.ids(ids)
        with self._now():
            rows = self._rows.find(names)
            numbers = self._rows.current[rows]
            found: list[Any] = [None] * len(rows)
            for number in np.unique(numbers):
                places = np.flatnonzero(numbers == number)
                for place, vector in zip(places, self._vectors(int(number), rows[places]), strict=True):
                    found[place] = vector
            return found, numbers.tolist()

    def nearest(self, generation: int, queries: Floats, k: int) -> Hits:
        with self._now():
            one = checking.among(self._generations, generation)
            values, key = checking.asked(one, queries, k), self._key(generation)
            owners = self._owners[key]
            found = self._layout.nearest(
                self._spaces[key], generation, values, k, lambda: self._rows.current[owners.rows] == generation
            )
            return self._named(*found, key, k)

    def search(self, queries: Mapping[int, Floats], k: int, fusion: Fusion = "cosine") -> Hits:
        with self._now():  # one state for all generations
            return self._layout.search(self, queries, k, fusion, self._shared)

    # What is changed.

    def add(self, ids: Sequence[Id], vectors: Floats, generation: int) -> None:
        names = checking.ids(ids)
        with self._writing():
            one = checking.among(self._generations, generation)
            values = checking.vectors(vectors, one.dim, count=len(names))
            known = self._rows.known(names) >= 0
            if known.any():
                there = [name for name, k in zip(names, known, strict=True) if k]
                raise DataError(
                    f"{len(there)} of {len(names)} ids are in the index already: {checking.some(there)}. Use move to give them "
                    "new vectors. Nothing was added."
                )
            self._commit(Segment("add", generation, names, values))

    def move(self, ids: Sequence[Id], vectors: Floats, generation: int) -> None:
        names = checking.ids(ids)
        with self._writing():
            one = checking.among(self._generations, generation)
            if one != self._generations[-1]:
                raise GenerationError(
                    f"Rows move to the newest generation, {self._generations[-1].number}; received {generation}."
                )
            values = checking.vectors(vectors, one.dim, count=len(names))
            self._rows.find(names)
            self._commit(Segment("move", generation, names, values))

    def remove(self, ids: Sequence[Id]) -> None:
        names = checking.ids(ids)
        with self._writing():
            self._rows.find(names)
            self._commit(Segment("remove", -1, names))

    def begin(self, generation: Generation) -> None:
        with self._writing():
            if checking.opens(self._generations, generation):
                self._layout.allow(self._generations, generation)
                self._commit(Segment("begin", generation.number, details=asdict(generation)))

    def rollback(self) -> None:
        with self._writing():
            newest = self._generations[-1].number
            if len(self._generations) == 1:
                raise GenerationError(f"The index holds generation {newest} alone; there is no older one to go back to.")
            if born := self._rows.newborn(newest):
                raise GenerationError(
                    f"{len(born)} rows were added in generation {newest} and have no older vector: {checking.some(born)}. Remove "
                    "them first, then roll back; add them again with vectors of the older encoder."
                )
            self._commit(Segment("rollback", newest))
            self._tidy()

    def finish(self) -> None:
        """Also with a single generation: the journal becomes part of the base, and the index opens faster."""
        with self._writing():
            newest = self._generations[-1]
            left = {g: n for g, n in self._rows.counts(g.number for g in self._generations[:-1]).items() if n}
            if left:
                raise GenerationError(
                    f"{sum(left.values())} rows still stand in an older generation ({left}); move or remove them first."
                )
            if self._applied >= self._manifest.first:
                try:
                    base = self._write_base(self._manifest.epoch + 1, newest)
                except OSError as error:
                    raise StoreError(
                        f"The new base of {self.place} could not be written: {error.strerror}. The index is as it was; make room "
                        "and finish again."
                    ) from error
                changed = replace(self._manifest, generations=[newest], base=base, epoch=self._manifest.epoch + 1)
                manifest.write(self.folder, replace(changed, first=self._applied + 1, padding=None))
                self._refresh()
            self._tidy()

    def close(self) -> None:
        with self._guard:
            self._closed = True
            self._content = None
            if self._journal is not None:
                self._journal.unlock()
            for part in ("_rows", "_spaces", "_owners"):  # a million vectors
                self.__dict__.pop(part, None)

    # How several generations lie in spaces.

    @property
    def padding(self) -> Mapping[str, Any] | None:
        """How old and new rows share one space (see `retrieval.padded`); None where they lie apart."""
        with self._now():
            return self._manifest.padding

    def lay(self, padding: Mapping[str, Any] | None) -> None:
        """Write how generations lie; `retrieval.padded` checks it before."""
        with self._writing():
            if padding is not None:
                self._layout_of(padding).base(self._space(self._generations[0].dim))  # raises for what cannot be padded
            manifest.write(self.folder, replace(self._manifest, padding=padding))
            self._refresh()

    def _layout_of(self, padding: Mapping[str, Any] | None) -> Layout:
        if padding is None:
            return Apart()
        from instar.retrieval.padded import Padded  # which knows this module

        return Padded(self._manifest.generations[0], int(padding["dim"]), float(padding["norm"]))

    def _key(self, generation: int) -> int:
        return self._layout.key(generation)

    def _vectors(self, generation: int, rows: Places) -> Floats:
        return self._layout.taken(generation, self._spaces[self._key(generation)].vectors(self._rows.slots(generation, rows)))

    def _shared(self, queries: Floats, k: int) -> Hits:
        key = self._key(self._generations[-1].number)
        return self._named(*self._spaces[key].search(queries, k), key, k)

    # One state.

    @contextlib.contextmanager
    def _now(self) -> Iterator[None]:
        """The state as it is now, and the same one until the end."""
        with self._guard:
            if self._closed:
                raise StoreError(f"{self.place} was closed; open it again.")
            if self._depth == 0:
                self._refresh()
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        with self._now():
            assert self._journal is not None
            if self._readonly:
                raise StoreError(f"{self.place} was opened readonly; open it again without to change it.")
            if not self._journal.locked:
                self._journal.lock()
                self._refresh()  # what the writer before did until it let go
                self._tidy()
            yield

    def _refresh(self) -> None:
        for _ in range(_ATTEMPTS):
            content = manifest.read(self.folder)
            try:
                if content == self._content:
                    self._follow()
                else:
                    self._load(content)
            except StoreError:
                if manifest.read(self.folder) == content:
                    raise
                continue  # its files went with the change that came meanwhile
            if manifest.read(self.folder) == content:
                return
        raise StoreError(f"{self.place} changed during every one of {_ATTEMPTS} attempts to read it; try again.")

    def _load(self, content: bytes) -> None:
        self._content = None  # whatever interrupts this, the next call begins again
        self._manifest = manifest.parse(content, self.folder, self.kind)
        if self._journal is None or self._journal.index != self._manifest.index:
            self._journal = Journal(self.folder, self._manifest.index)
        self._generations = list(self._manifest.generations)
        self._rows, self._spaces, self._owners = Rows(), {}, {}
        first = self._generations[0].number
        self._layout = self._layout_of(self._manifest.padding)
        base, names = self._base()
        space = self._layout.base(base)
        self._spaces[self._key(first)], self._owners[self._key(first)] = space, Owners()
        rows = self._rows.enter(names)
        self._owners[self._key(first)].add(0, rows)
        self._rows.put(first, rows, np.arange(len(rows)))
        numbers = self._journal.numbers(self._manifest.first)
        self._applied = numbers.start - 1
        taken_back = self._taken_back()
        for number in numbers:
            if number not in taken_back and (segment := self._journal.read(number)) is not None:
                self._apply(segment)
            self._applied = number
        self._content = content

    def _follow(self) -> None:
        assert self._journal is not None
        while (segment := self._journal.read(self._applied + 1)) is not None:
            content, self._content = self._content, None
            assert content is not None
            if segment.kind == "rollback":
                self._load(content)
                continue
            self._apply(segment)
            self._applied += 1
            self._content = content

    def _taken_back(self) -> set[int]:
        """Segments that a later rollback made void, itself with them."""
        assert self._journal is not None
        found: set[int] = set()
        open_: dict[int, list[int]] = {}
        for number in self._journal.numbers(self._manifest.first):
            segment = self._journal.read(number, vectors=False)
            assert segment is not None
            if segment.kind == "begin":
                open_[segment.generation] = []
            if segment.generation in open_:
                open_[segment.generation].append(number)
            if segment.kind == "rollback":
                found.update(open_.pop(segment.generation))
        return found

    def _apply(self, segment: Segment) -> None:
        number = segment.generation
        if segment.kind == "begin":
            one = Generation(**(segment.details or {}))
            self._generations.append(one)
            if self._key(number) not in self._spaces:
                self._spaces[self._key(number)], self._owners[self._key(number)] = self._space(one.dim), Owners()
        elif segment.kind == "remove":
            rows = self._rows.known(segment.ids)
            rows = rows[rows >= 0]  # those of a generation that was rolled back later are not there at all
            self._hide(rows)
            self._rows.leave(rows)
        elif segment.kind in ("add", "move"):
            assert segment.vectors is not None
            rows = self._rows.enter(segment.ids) if segment.kind == "add" else self._rows.find(segment.ids)
            self._hide(rows)
            key = self._key(number)
            first = self._spaces[key].add(self._layout.stored(number, segment.vectors))
            self._owners[key].add(first, rows)
            self._rows.put(number, rows, np.arange(first, first + len(rows)))

    def _hide(self, rows: Places) -> None:
        """The vectors that count for these rows no longer do."""
        numbers = self._rows.current[rows]
        for number in np.unique(numbers[numbers >= 0]).tolist():
            self._spaces[self._key(number)].drop(self._rows.slots(number, rows[numbers == number]))

    def _commit(self, segment: Segment) -> None:
        assert self._journal is not None
        if segment.kind in ("add", "move", "remove") and not len(segment.ids):
            return
        self._journal.append(self._applied + 1, segment)
        self._refresh()

    def _tidy(self) -> None:
        """Finish what an ended or killed change left to be deleted. Failing at it harms nothing."""
        assert self._journal is not None
        with contextlib.suppress(OSError, StoreError):
            self._journal.drop(self._manifest.first)
            self._settle()
            for number in sorted(self._taken_back()):
                segment = self._journal.read(number, vectors=False)
                if segment is not None and segment.kind in ("add", "move"):
                    self._journal.void(number, segment)

    def _named(self, scores: Floats, slots: Places, key: int, k: int) -> Hits:
        best, ids, generations = checking.empty(len(scores), k)
        there = slots >= 0
        rows = self._owners[key].rows[slots[there]]
        best[there], ids[there], generations[there] = scores[there], self._rows.names[rows], self._rows.current[rows]
        return Hits(best, ids, generations)
