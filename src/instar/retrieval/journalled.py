"""An index on this machine: a base that is never touched, and a journal of what changed since.

Base and journal together are the index. What they say is held in memory (`retrieval.held`). Every call
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
from typing import Any, ClassVar, Self

from instar.errors import DataError, GenerationError, ShapeError, StoreError
from instar.interfaces import Floats, Fusion, Generation, Hits, Id, Index
from instar.retrieval import checking, manifest, snapshots
from instar.retrieval.held import Held
from instar.retrieval.journal import Journal, Segment
from instar.retrieval.layout import Apart, Layout
from instar.retrieval.rows import Places
from instar.retrieval.spaces import Space

_ATTEMPTS = 8


class JournalledIndex(Index, abc.ABC):
    """See the module. `place`: the index as the user names it; `folder`: where manifest and journal stand.

    May be used by several threads, one at a time; not across a fork. Raises GenerationError for an index without a manifest,
    StoreError for files that cannot be used.
    """

    kind: ClassVar[str]

    def __init__(self, place: str | Path, *, readonly: bool = False) -> None:
        self.place = Path(place).expanduser()
        self.folder = folder = self._folder_of(self.place)
        self._readonly = readonly
        self._guard = threading.RLock()
        self._depth = 0
        self._closed = False
        self._content: bytes | None = None
        self._held: Held | None = None
        self._journal = Journal(folder, "")
        with self._now() as held:
            self._meant = {g.number: g.encoder for g in held.generations}
            """Generation -> the encoder whose vectors this object is given for it."""

    @classmethod
    def open(cls, location: str, name: str = "", *, create: Generation | None = None, readonly: bool = False) -> Self:
        """Open an index. create: the generation of one without rows that is made where there is none (see `_create`).

        Raises GenerationError for an index without a manifest, or whose oldest generation is not `create`; StoreError.
        """
        place = Path(location).expanduser()
        if create is not None and cls._vacant(place):
            checking.described(create)
            try:
                cls._create(place, create)
            except StoreError:
                if not (cls._folder_of(place) / manifest.NAME).exists():  # otherwise another process made one at this moment
                    raise
        index = cls(place, readonly=readonly)
        held = index.generations()[0]
        if create is not None and (held.number, held.encoder, held.dim) != (create.number, create.encoder, create.dim):
            index.close()
            raise GenerationError(
                f"{place} exists and holds generation {held.number} of the encoder {held.encoder[:16]} (dimension {held.dim}), "
                f"not generation {create.number} of {create.encoder[:16]} ({create.dim}). Open it without create, or elsewhere."
            )
        return index

    # What a kind of index says.

    @staticmethod
    def _folder_of(place: Path) -> Path:
        """Where manifest and journal stand."""
        return place

    @classmethod
    @abc.abstractmethod
    def _vacant(cls, place: Path) -> bool:
        """Whether there is no index, so that one may be made. Raises GenerationError for vectors without a stamp."""

    @classmethod
    @abc.abstractmethod
    def _create(cls, place: Path, generation: Generation) -> None:
        """Make an index without rows. Raises StoreError."""

    @abc.abstractmethod
    def _base(self) -> tuple[Space, Sequence[Id]]:
        """The base that the manifest names: its space, and the id of each slot. Raises StoreError."""

    @abc.abstractmethod
    def _space(self, dim: int) -> Space:
        """An empty space for a new generation."""

    @abc.abstractmethod
    def _write_base(self, epoch: int, generation: Generation) -> Mapping[str, Any]:
        """Write all rows as a new base beside the old one, durably; returns what the manifest says of it. Raises OSError."""

    def _standing(self, generation: int) -> tuple[Held, Places]:
        """What is held, and the rows that stand in a generation."""
        assert self._held is not None
        return self._held, self._held.rows.standing(generation)

    @abc.abstractmethod
    def _settle(self) -> None:
        """Put the manifest's base in its place and delete every other one. May be interrupted and repeated. Raises OSError."""

    # What is read.

    def generations(self) -> list[Generation]:
        with self._now() as held:
            return list(held.generations)

    def counts(self) -> dict[int, int]:
        with self._now() as held:
            return held.rows.counts(g.number for g in held.generations)

    def ids(self, generation: int, *, after: Id | None = None, limit: int = 10_000) -> list[Id]:
        with self._now() as held:
            checking.among(held.generations, generation)
            return held.rows.page(generation, after, limit)

    def fetch(self, ids: Sequence[Id]) -> tuple[list[Floats], list[int]]:
        names = checking.ids(ids)
        with self._now() as held:
            return held.fetch(held.rows.find(names))

    def nearest(self, generation: int, queries: Floats, k: int) -> Hits:
        with self._now() as held:
            return held.nearest(generation, checking.asked(checking.among(held.generations, generation), queries, k), k)

    def search(self, queries: Mapping[int, Floats], k: int, fusion: Fusion = "cosine") -> Hits:
        with self._now() as held:  # one state for all generations
            return self._layout.search(self, queries, k, fusion, held.shared)

    # What is changed.

    def add(self, ids: Sequence[Id], vectors: Floats, generation: int) -> None:
        names = checking.ids(ids)
        with self._writing() as held:
            one = checking.among(held.generations, generation)
            checking.meant(self._meant, one, str(self.place))
            values = checking.vectors(vectors, one.dim, count=len(names))
            known = held.rows.known(names) >= 0
            if known.any():
                there = [name for name, k in zip(names, known, strict=True) if k]
                raise DataError(
                    f"{len(there)} of {len(names)} ids are in the index already: {checking.some(there)}. Use move to give them "
                    "new vectors. Nothing was added."
                )
            self._commit(Segment("add", generation, names, values))

    def move(self, ids: Sequence[Id], vectors: Floats, generation: int) -> None:
        names = checking.ids(ids)
        with self._writing() as held:
            one = checking.among(held.generations, generation)
            if one != held.generations[-1]:
                raise GenerationError(
                    f"Rows move to the newest generation, {held.generations[-1].number}; received {generation}."
                )
            checking.meant(self._meant, one, str(self.place))
            values = checking.vectors(vectors, one.dim, count=len(names))
            held.rows.find(names)
            self._commit(Segment("move", generation, names, values))

    def remove(self, ids: Sequence[Id]) -> None:
        names = checking.ids(ids)
        with self._writing() as held:
            held.rows.find(names)
            self._commit(Segment("remove", -1, names))

    def begin(self, generation: Generation) -> None:
        with self._writing() as held:
            if checking.opens(held.generations, generation):
                self._layout.allow(held.generations, generation)
                self._commit(Segment("begin", generation.number, details=asdict(generation)))
            self._meant[generation.number] = generation.encoder

    def rollback(self) -> None:
        with self._writing() as held:
            newest = held.generations[-1].number
            if len(held.generations) == 1:
                raise GenerationError(f"The index holds generation {newest} alone; there is no older one to go back to.")
            if born := held.rows.newborn(newest):
                raise GenerationError(
                    f"{len(born)} rows were added in generation {newest} and have no older vector: {checking.some(born)}. Remove "
                    "them first, then roll back; add them again with vectors of the older encoder."
                )
            self._commit(Segment("rollback", newest))
            self._tidy()

    def finish(self) -> None:
        """Also with a single generation: the journal becomes part of the base, and the index opens faster."""
        with self._writing() as held:
            newest = held.generations[-1]
            left = {g: n for g, n in held.rows.counts(g.number for g in held.generations[:-1]).items() if n}
            if left:
                raise GenerationError(
                    f"{sum(left.values())} rows still stand in an older generation ({left}); move or remove them first."
                )
            if self._applied >= self._manifest.first:
                try:
                    base = self._write_base(self._manifest.epoch + 1, newest)
                    changed = replace(self._manifest, generations=[newest], base=base, epoch=self._manifest.epoch + 1)
                    manifest.write(self.folder, replace(changed, first=self._applied + 1, padding=None))
                except (OSError, StoreError) as error:
                    with contextlib.suppress(GenerationError, StoreError):
                        self._refresh()
                        self._tidy()  # what was written so far takes room that may be needed
                    if isinstance(error, StoreError):
                        raise
                    raise StoreError(
                        f"The new base of {self.place} could not be written: {error.strerror}. The index is as it was; make room "
                        "and finish again."
                    ) from error
                self._refresh()
            self._tidy()

    def close(self) -> None:
        with self._guard:
            self._closed = True
            self._content = None
            self._journal.unlock()
            self._held = None  # a million vectors

    # How several generations lie in spaces.

    @property
    def padding(self) -> Mapping[str, Any] | None:
        """How old and new rows share one space (see `retrieval.padded`); None where they lie apart."""
        with self._now():
            return self._manifest.padding

    def lay(self, padding: Mapping[str, Any] | None) -> None:
        """Write how generations lie; `retrieval.padded` checks it before."""
        with self._writing() as held:
            if padding is not None:
                self._layout_of(padding).base(self._space(held.generations[0].dim))  # raises for what cannot be padded
            manifest.write(self.folder, replace(self._manifest, padding=padding))
            self._refresh()

    def _layout_of(self, padding: Mapping[str, Any] | None) -> Layout:
        if padding is None:
            return Apart()
        from instar.retrieval.padded import Padded  # which knows this module

        return Padded(self._manifest.generations[0], int(padding["dim"]), float(padding["norm"]))

    # One state.

    @contextlib.contextmanager
    def _now(self) -> Iterator[Held]:
        """The state as it is now, and the same one until the end."""
        with self._guard:
            if self._closed:
                raise StoreError(f"{self.place} was closed; open it again.")
            if self._depth == 0:
                self._refresh()
            self._depth += 1
            try:
                assert self._held is not None
                yield self._held
            finally:
                self._depth -= 1

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Held]:
        with self._now():
            if self._readonly:
                raise StoreError(f"{self.place} was opened readonly; open it again without to change it.")
            if not self._journal.locked:
                self._journal.lock()
                self._refresh()  # what the writer before did until it let go
                self._tidy()
            assert self._held is not None
            yield self._held

    def _refresh(self) -> None:
        for _ in range(_ATTEMPTS):
            content = self._stamp_now()
            try:
                if content == self._content:
                    self._follow()
                else:
                    self._load(content)
            except (StoreError, ShapeError, DataError):
                if self._stamp_now() == content:
                    raise
                continue  # its files went with the change that came meanwhile, or are others now, of another width
            if self._stamp_now() == content:
                return
        raise StoreError(f"{self.place} changed during every one of {_ATTEMPTS} attempts to read it; try again.")

    def _stamp_now(self) -> bytes:
        try:
            return manifest.read(self.folder)
        except GenerationError as error:
            if self._held is None:
                raise
            raise StoreError(f"{self.place} is gone: {self.folder} had a {manifest.NAME} before. Bring it back.") from error

    def _load(self, content: bytes) -> None:
        self._content = None  # whatever interrupts this, the next call begins again
        self._manifest = manifest.parse(content, self.folder, self.kind)
        if self._journal.index != self._manifest.index:
            self._journal.unlock()
            self._journal = Journal(self.folder, self._manifest.index)
        self._layout = self._layout_of(self._manifest.padding)
        numbers = self._journal.numbers(self._manifest.first)
        gone = self._journal.taken_back(numbers)
        last = snapshots.find(self.folder, self._manifest.index) if self._manifest.padding is None else None
        # One that the writer made since the segments were listed holds vectors that are not known here yet.
        usable = last is not None and last.begin in numbers and last.number in numbers and last.begin not in gone
        base, names = self._base()
        self._held = Held(
            *(self._manifest.generations[0], base, names, self._layout, self._space),
            snapshot=(last, self.folder / str(last.file["name"])) if last is not None and usable else None,
        )
        self._applied = numbers.start - 1
        for number in numbers:
            if number not in gone:
                self._take(number)
            self._applied = number
        self._content = content

    def _follow(self) -> None:
        while (segment := self._journal.read(self._applied + 1, vectors=False)) is not None:
            content, self._content = self._content, None
            assert content is not None
            if segment.kind in ("rollback", "void"):  # further on stands the rollback that made it void, with what belongs to it
                self._load(content)
                continue
            self._take(self._applied + 1)
            self._applied += 1
            self._content = content

    def _take(self, number: int) -> None:
        head = self._journal.read(number, vectors=False)
        assert self._held is not None
        if head is not None and self._held.wants_vectors(number, head.generation):
            head = self._journal.read(number)
        if head is None:
            raise StoreError(f"{self._journal.path(number)} is gone: restore the folder from a backup.")
        self._held.apply(number, head)

    def _commit(self, segment: Segment) -> None:
        if segment.kind in ("add", "move", "remove") and not len(segment.ids):
            return
        self._journal.append(self._applied + 1, segment)
        self._refresh()
        assert self._held is not None
        if self._manifest.padding is None:
            snapshots.keep(self.folder, self._manifest.index, self._applied, self._held)

    def _tidy(self) -> None:
        """Finish what an ended or killed change left to be deleted. Failing at it harms nothing."""
        assert self._held is not None
        with contextlib.suppress(OSError, StoreError):
            self._journal.drop(self._manifest.first)
            self._settle()
            snapshots.drop(self.folder, self._held.snapshot)
            self._journal.void(self._manifest.first)
