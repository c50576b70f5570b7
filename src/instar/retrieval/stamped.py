"""What those stores share that keep, of every row, one vector a generation, each of which may be absent.

Of a row the newest vector that it has counts. A row is thus stamped by which of its vectors are there, and no flag beside them
could ever contradict them: `move` adds a vector, `rollback` takes all vectors of the newest generation away, `finish` those of
the older ones. A row that an application adds as it always did, with a vector of the old encoder, is right from its first moment.

The other half of a stamp, which encoder a generation is from, stands in the store too: see `Stamp`.
"""

from __future__ import annotations

import abc
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from instar.errors import DataError, GenerationError, StoreError
from instar.interfaces import Floats, Generation, Hits, Id, Index
from instar.retrieval import checking


@dataclass(frozen=True)
class Stamp:
    """A generation, and what the store calls its vectors."""

    generation: Generation
    column: str

    def as_json(self) -> str:
        """For where a store keeps it."""
        return json.dumps(asdict(self.generation), sort_keys=True)

    @classmethod
    def of_json(cls, text: str | bytes, column: str) -> Stamp:
        """What `as_json` gave. Raises StoreError."""
        try:
            found = Generation(**json.loads(text))
            if not (isinstance(found.number, int) and isinstance(found.dim, int) and isinstance(found.encoder, str)):
                raise TypeError("number and dim are integers, encoder is a text")
        except (ValueError, TypeError) as error:
            raise StoreError(
                f"'{column}' has a stamp that is none ({error}); another program has written it. Restore it, or remove the stamp "
                "and adopt the index again."
            ) from error
        return cls(found, column)


class StampedIndex(Index):
    """Stamps and checks; the store's own language is left to the subclasses."""

    where: str
    """The store, for messages."""

    def __init__(self, where: str, readonly: bool) -> None:
        self.where, self.readonly = where, readonly
        self._writing: dict[int, str] = {}

    @abc.abstractmethod
    def stamps(self) -> list[Stamp]:
        """As they are in the store now, the oldest first."""

    def generations(self) -> list[Generation]:
        """See `Index.generations`."""
        return [stamp.generation for stamp in self.stamps()]

    def place(self, stamps: Sequence[Stamp], number: int) -> int:
        """Where a generation stands among the stamps. Raises GenerationError."""
        return [s.generation for s in stamps].index(checking.among([s.generation for s in stamps], number))

    def writable(self) -> None:
        """Raises StoreError for an index that is only read."""
        if self.readonly:
            raise StoreError(f"The index of {self.where} was opened to be read only; open it without readonly to change it.")

    def target(self, stamps: Sequence[Stamp], number: int, *, newest: bool) -> Stamp:
        """The stamp of a generation that is to be written to.

        Raises GenerationError for an unknown one, for one that is not the newest where it has to be, and where another process
        has taken the generation back and opened it for another encoder: vectors of the first one would then be strangers.
        """
        found = stamps[self.place(stamps, number)]
        if newest and found is not stamps[-1]:
            raise GenerationError(f"Rows move to the newest generation, {stamps[-1].generation.number}; received {number}.")
        checking.meant(self._writing, found.generation, self.where)
        return found

    def opens(self, stamps: Sequence[Stamp], new: Generation) -> bool:
        """Whether `begin` has something to do; from here on this index writes vectors of that encoder. Raises GenerationError."""
        found = checking.opens([s.generation for s in stamps], new)
        self._writing[new.number] = new.encoder
        return found

    def older(self, stamps: Sequence[Stamp]) -> None:
        """Raises GenerationError where there is nothing to go back to."""
        if len(stamps) == 1:
            raise GenerationError(
                f"{self.where} holds one generation, {stamps[0].generation.number}; there is no older one to go back to."
            )

    def adds_left(self, rows: int) -> None:
        """Raises GenerationError for rows that a rollback would lose."""
        if rows:
            raise GenerationError(
                f"{rows} rows of {self.where} have a vector of the newest generation only; a rollback would lose them. Remove "
                "them first, or give them older vectors with add."
            )

    def rows_left(self, rows: int) -> None:
        """Raises GenerationError for rows that an end would lose."""
        if rows:
            raise GenerationError(f"{rows} rows of {self.where} still stand in older generations; move or remove them first.")


def adopted(stamps: Sequence[Stamp], generation: Generation, where: str) -> bool:
    """Whether an index was adopted as this generation before. Raises GenerationError where it is stamped otherwise."""
    checking.described(generation)
    if not stamps:
        return False
    first = stamps[0].generation
    if (first.number, first.encoder, first.dim) != (generation.number, generation.encoder, generation.dim):
        raise GenerationError(
            f"{where} is stamped already: generation {first.number} of the encoder {first.encoder[:16]}, dimension {first.dim}; "
            f"received generation {generation.number} of {generation.encoder[:16]}, dimension {generation.dim}."
        )
    return True


def unstamped(where: str) -> GenerationError:
    """The error for an index of which nobody said whose vectors it holds."""
    return GenerationError(
        f"{where} carries no stamp: nobody said which encoder made these vectors. Say so once with `instar encoder adopt`, or in "
        "Python with instar.retrieval.opening.adopt_index(url, Generation(0, fingerprint, dim))."
    )


def column_after(stamps: Sequence[Stamp], number: int, longest: int) -> str:
    """The name of a new generation's vectors: that of the first ones with `_g1`, in at most so many bytes of UTF-8."""
    first = stamps[0]
    base = re.sub(rf"_g{first.generation.number}\Z", "", first.column) or "vector"
    end = f"_g{number}"
    return base.encode()[: longest - len(end)].decode(errors="ignore") + end


def exists(names: Sequence[Id]) -> DataError:
    """The error for `add` of rows that have vectors."""
    return DataError(f"Rows {checking.some(names)} exist already; `move` gives existing rows other vectors.")


def missing(names: Sequence[Id]) -> DataError:
    """The error for rows that are not there, or have no vector."""
    return DataError(f"There are no rows {checking.some(names)} with a vector in this index.")


def unit(row: Any) -> Floats:
    """A stored vector of length 1: stores that compare by angle may hold others."""
    found = np.array(row, dtype=np.float32)
    length = float(np.linalg.norm(found))
    return found if abs(length - 1) <= checking.LENGTH or length == 0 else found / np.float32(length)


def hits(found: Sequence[Sequence[tuple[float, Id]]], k: int, number: int) -> Hits:
    """From (score, id) of each query, in any order."""
    scores, names, generations = checking.empty(len(found), k)
    for row, pairs in enumerate(found):
        best = sorted(pairs, key=lambda pair: -pair[0])[:k]
        scores[row, : len(best)] = [score for score, _ in best]
        names[row, : len(best)] = [name for _, name in best]
        generations[row, : len(best)] = number
    return Hits(scores, names, generations)
