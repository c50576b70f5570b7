"""Reading back what was written, so that a store that loses or spoils rows is noticed in the batch in which it does."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from instar.errors import ShapeError, StoreError
from instar.interfaces import Floats, Id, Index

_NEAR = 10
_WIDE = 100
"""Results among which a row is looked for by its own vector: at first, and when it was not there."""


@dataclass
class Verification:
    """Reads back a sample of every batch: generation and vector are what was written, and the row is found by its own vector.

    The last of these may fail now and then in an approximate index, so such rows are collected in `unfound`, and it is an error
    only when they are more than `most_unfound` of those that were looked for. O(sample) fetches and searches a batch.
    """

    sample: int = 8
    """Rows of each batch; 0 checks none."""
    tolerance: float = 1e-3
    """Largest difference of a coordinate, beyond a 256th of it: a store may keep float16 or bfloat16, which cuts after 8 bits."""
    most_unfound: float = 0.1
    checked: int = 0
    unfound: list[Id] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.sample < 0 or self.tolerance < 0 or not 0 <= self.most_unfound <= 1:
            raise ShapeError(
                "A verification expects sample and tolerance of 0 or more and a share of unfound rows from 0 to 1; received "
                f"{self.sample}, {self.tolerance} and {self.most_unfound}."
            )

    def batch(self, index: Index, ids: Sequence[Id], vectors: Floats, generation: int) -> None:
        """After a batch was moved. Raises StoreError that names the rows."""
        # Which rows: by the ids, not by place, so that every position of a batch is looked at.
        places = sorted(range(len(ids)), key=lambda i: zlib.crc32(str(ids[i]).encode("utf-8", "surrogatepass")))[: self.sample]
        if not places:
            return
        names, written = [ids[i] for i in places], vectors[places]
        found, generations = index.fetch(names)
        if old := [name for name, number in zip(names, generations, strict=True) if number != generation]:
            raise _spoilt(old, f"stand in generation {min(generations)} after they were moved to {generation}")
        wrong = [name for name, a, b in zip(names, found, written, strict=True) if not self._equal(a, b)]
        if wrong:
            raise _spoilt(wrong, "do not hold the vectors that were written")
        self.checked += len(names)
        lost = [names[i] for i in _unfound(index, names, written, generation, _NEAR)]
        if lost:
            again = np.stack([written[names.index(name)] for name in lost])
            self.unfound += [lost[i] for i in _unfound(index, lost, again, generation, _WIDE)]
        if len(self.unfound) > max(self.most_unfound * self.checked, 2):
            raise _spoilt(self.unfound, f"are not among the {_WIDE} nearest to their own vectors")

    def _equal(self, found: Floats, written: Floats) -> bool:
        return found.shape == written.shape and bool((np.abs(found - written) <= self.tolerance + np.abs(written) / 256).all())


def _unfound(index: Index, names: Sequence[Id], vectors: Floats, generation: int, k: int) -> list[int]:
    """Places of rows that are not the nearest to their own vectors; equals of the nearest count as the nearest."""
    hits = index.nearest(generation, vectors, k)
    missing = []
    for place, name in enumerate(names):
        same = hits.scores[place] >= hits.scores[place, 0] - 1e-4
        # Where all k are equally near (many equal texts), the row may be one of those that did not fit.
        if hits.scores[place, 0] < 1 - 1e-2 or (name not in hits.ids[place][same] and not same.all()):
            missing.append(place)
    return missing


def _spoilt(names: Sequence[Id], what: str) -> StoreError:
    shown = ", ".join(map(str, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return StoreError(
        f"Rows {shown} {what}. The backfill has stopped; older vectors are kept until `finish`, so `rollback` brings everything "
        "back. Look for another writer or a store that rounds vectors."
    )
