"""Points of a Qdrant collection, searched by Qdrant: `qdrant:URL#COLLECTION` or, in local mode, `qdrant:FOLDER#COLLECTION`.

Every generation is a named vector of the user's own collection; payloads and other vectors stay as they are. Stamps stand in the
metadata of the collection.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from instar.errors import StoreError
from instar.interfaces import Floats, Generation, Hits, Id
from instar.retrieval import checking
from instar.retrieval import qdrant_stamps as stamping
from instar.retrieval.qdrant_collection import Client, given
from instar.retrieval.stamped import Stamp, StampedIndex, adopted, column_after, exists, hits, missing, unit, unstamped

_BYTES = 8_000_000
"""Of vectors in one request; a server takes 32 MB of JSON."""
_PAGE = 1000
_LONGEST_NAME = 200


class QdrantIndex(StampedIndex):
    """Points of a collection, on a server (Qdrant 1.18 or later) or in a folder (local mode of `qdrant-client`).

    A new generation is a named vector `<vector>_g1`. A point changes its generation at once, when it is given that vector; a
    batch is written point by point in local mode and in requests of 8 MB to a server, so that a `move` or `add` that is
    interrupted has happened for some of its points: each of them is whole and found, and `move` may be called again.
    `rollback` and `finish` first change the stamps, which decide, and then delete vectors; where they are interrupted, the next
    call of `begin`, `rollback` or `finish` deletes what is left.

    Local mode locks its folder: one process at a time, readers included. It compares all rows of a generation one by one, holds
    them in memory and reads them with pickle, so open only folders that you trust. Ids are whole numbers from 0, or UUIDs.
    """

    def __init__(self, client: Client, readonly: bool) -> None:
        super().__init__(client.where, readonly)
        self._client = client
        for stamp in self.stamps():
            self._writing[stamp.generation.number] = stamp.generation.encoder

    @classmethod
    def open(cls, location: str, name: str, *, create: Generation | None = None, readonly: bool = False) -> QdrantIndex:
        """The stamped collection `name` at a URL or in a folder.

        A key for a server is taken from the environment variable QDRANT_API_KEY, and sent over https or to this machine only.
        create: where there is no such collection, make one with a vector `vector` for this generation; one that exists has to be
        of it. Raises StoreError for a collection that is not there and for a folder that is in use, GenerationError for one
        without a stamp.
        """
        client = Client(location, name, make_folder=create is not None)
        try:
            if create is not None and not client.exists():
                checking.described(create)
                client.create("vector", create.dim, stamping.metadata([Stamp(create, "vector")], []))
            elif create is not None:
                adopted(stamping.stamped(client)[0], create, client.where)
            return cls(client, readonly)
        except BaseException:
            client.close()
            raise

    @classmethod
    def adopt(cls, location: str, name: str, generation: Generation, *, vector: str | None = None) -> QdrantIndex:
        """Stamp a collection that exists: its vectors are of `generation`. Only the metadata of the collection change.

        vector: the name of the vector, '' for the unnamed one; by default the only one that there is. Reads all vectors once.
        Raises StoreError, DataError for vectors that do not fit, GenerationError for a collection that is stamped otherwise.
        """
        client = Client(location, name)
        try:
            if not adopted(stamping.stamped(client)[0], generation, client.where):
                vectors = client.vectors()
                column = next(iter(vectors)) if vector is None and len(vectors) == 1 else vector
                if column not in vectors:
                    raise StoreError(
                        f"{client.where} has the vectors {', '.join(map(repr, vectors)) or '(none)'}; received {vector!r}. Say "
                        "which one holds the vectors of that encoder."
                    )
                stamping.fits(client, column, generation)
                client.describe(stamping.metadata([Stamp(generation, column)], []))
            return cls(client, readonly=False)
        except BaseException:
            client.close()
            raise

    def stamps(self) -> list[Stamp]:
        """See `StampedIndex.stamps`."""
        return self._stamps()[0]

    def counts(self) -> dict[int, int]:
        """See `Index.counts`."""
        stamps = self.stamps()
        return {s.generation.number: self._client.count(*_standing(stamps, i)) for i, s in enumerate(stamps)}

    def ids(self, generation: int, *, after: Id | None = None, limit: int = 10_000) -> list[Id]:
        """See `Index.ids`: numbers before UUIDs, each in their order."""
        stamps = self.stamps()
        standing = _standing(stamps, self.place(stamps, generation))
        start = None if after is None else given([after])[0]
        found = [point.id for point in self._client.scroll(standing, max(limit, 0) + 1, start, [])]
        return [one for one in found if one != start][: max(limit, 0)]

    def fetch(self, ids: Sequence[Id]) -> tuple[list[Floats], list[int]]:
        """See `Index.fetch`."""
        stamps = self.stamps()
        spelled = {name: given([name])[0] for name in ids}
        names = list(dict.fromkeys(spelled.values()))
        found: dict[Id, tuple[Floats, int]] = {}
        for start in range(0, len(names), _PAGE):
            for point in self._client.retrieve(names[start : start + _PAGE], [s.column for s in stamps]):
                held = [s for s in stamps if s.column in point.vectors]
                if held:
                    found[point.id] = unit(point.vectors[held[-1].column]), held[-1].generation.number
        if lost := [name for name in names if name not in found]:
            raise missing(lost)
        return [found[spelled[name]][0] for name in ids], [found[spelled[name]][1] for name in ids]

    def add(self, ids: Sequence[Id], vectors: Floats, generation: int) -> None:
        """See `Index.add`. A point of the application without a vector is given one; others are made, without payload."""
        self.writable()
        stamps = self.stamps()
        stamp = self.target(stamps, generation, newest=False)
        names = given(ids)
        rows = checking.vectors(vectors, stamp.generation.dim, count=len(names))
        there = self._there(names)
        if held := self._held(stamps, names):
            raise exists([name for name in names if name in held])
        for part in self._parts(names, rows):
            new = [(name, row) for name, row in part if name not in there]
            old = [(name, row) for name, row in part if name in there]
            self._client.insert(stamp.column, new)
            self._client.update(stamp.column, old)

    def remove(self, ids: Sequence[Id]) -> None:
        """See `Index.remove`. The points go, with their payload."""
        self.writable()
        names = given(ids)
        self._all_held(self.stamps(), names)
        for start in range(0, len(names), _PAGE):
            self._client.delete(names[start : start + _PAGE])

    def begin(self, generation: Generation) -> None:
        """See `Index.begin`."""
        self.writable()
        stamps = self._clean()
        if self.opens(stamps, generation):
            column = column_after(stamps, generation.number, _LONGEST_NAME)
            if column in self._client.names():
                raise StoreError(
                    f"{self.where} has a vector '{column}' already, where the new ones would stand; delete or rename it."
                )
            # If this ends before the stamp is written, the vector is known as one that nobody needs.
            self._client.describe(stamping.metadata(stamps, [column]))
            self._client.add_vector(column, generation.dim, like=stamps[-1].column)
            self._client.describe(stamping.metadata([*stamps, Stamp(generation, column)], []))

    def move(self, ids: Sequence[Id], vectors: Floats, generation: int) -> None:
        """See `Index.move`. The older vectors stay until `finish`."""
        self.writable()
        stamps = self.stamps()
        stamp = self.target(stamps, generation, newest=True)
        names = given(ids)
        rows = checking.vectors(vectors, stamp.generation.dim, count=len(names))
        self._all_held(stamps, names)
        done = 0
        for part in self._parts(names, rows):
            try:
                self._client.update(stamp.column, part)
            except StoreError as error:
                raise StoreError(
                    f"{error} {done} of {len(names)} points had moved before; all others are as they were or have moved. "
                    "Call move again with all of them."
                ) from error
            done += len(part)

    def nearest(self, generation: int, queries: Floats, k: int) -> Hits:
        """See `Index.nearest`. Where Qdrant's index gives fewer than k points, the generation is read exactly."""
        stamps = self.stamps()
        place = self.place(stamps, generation)
        asked = checking.asked(stamps[place].generation, queries, k)
        found = self._client.nearest(stamps[place].column, asked, k, _standing(stamps, place))
        return hits(found, k, generation)

    def rollback(self) -> None:
        """See `Index.rollback`."""
        self.writable()
        stamps = self._clean()
        self.older(stamps)
        self.adds_left(self._client.count([stamps[-1].column], [s.column for s in stamps[:-1]]))
        self._client.describe(stamping.metadata(stamps[:-1], [stamps[-1].column]))
        self._clean()

    def finish(self) -> None:
        """See `Index.finish`."""
        self.writable()
        stamps = self._clean()
        if len(stamps) > 1:
            self.rows_left(sum(self._client.count(*_standing(stamps, place)) for place in range(len(stamps) - 1)))
            self._client.describe(stamping.metadata(stamps[-1:], [s.column for s in stamps[:-1]]))
            self._clean()

    def close(self) -> None:
        """Give back the connection, or the folder."""
        self._client.close()

    def _stamps(self) -> tuple[list[Stamp], list[str]]:
        stamps, left = stamping.stamped(self._client)
        if not stamps:
            raise unstamped(self.where)
        return stamps, left

    def _clean(self) -> list[Stamp]:
        """The stamps, after the vectors of generations that have gone were deleted."""
        stamps, left = self._stamps()
        for column in left:
            self._client.drop_vector(column)
        if left:
            self._client.describe(stamping.metadata(stamps, []))
        return stamps

    def _parts(self, names: Sequence[Id], rows: Floats) -> Iterator[list[tuple[Id, Floats]]]:
        size = max(1, _BYTES // (rows.shape[1] * 12))
        for start in range(0, len(names), size):
            yield list(zip(names[start : start + size], rows[start : start + size], strict=True))

    def _there(self, names: Sequence[Id]) -> set[Id]:
        return {p.id for start in range(0, len(names), _PAGE) for p in self._client.retrieve(names[start : start + _PAGE], [])}

    def _held(self, stamps: Sequence[Stamp], names: Sequence[Id]) -> set[Id]:
        """Those of these points that have a vector."""
        found: set[Id] = set()
        for start in range(0, len(names), _PAGE):
            part = names[start : start + _PAGE]
            found |= {point.id for point in self._client.among(part, [s.column for s in stamps])}
        return found

    def _all_held(self, stamps: Sequence[Stamp], names: Sequence[Id]) -> None:
        held = self._held(stamps, names)
        if lost := [name for name in names if name not in held]:
            raise missing(lost)


def _standing(stamps: Sequence[Stamp], place: int) -> tuple[list[str], list[str]]:
    """Vectors that a point of a generation has, and those that it has not."""
    return [stamps[place].column], [s.column for s in stamps[place + 1 :]]
