"""Exact indexes with one planted defect each. What must notice it stands in `test_index_contract.py`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from instar.interfaces import Floats, Fusion, Generation, Hits, Id
from instar.retrieval.exact import ExactIndex
from instar.retrieval.fusion import merge
from instar.retrieval.held import Held
from instar.retrieval.journal import Segment


@contextmanager
def patched(owner: type, name: str, value: Any) -> Iterator[None]:
    real = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, real)


def opened(defect: type[ExactIndex], url: str, readonly: bool = False) -> ExactIndex:
    """`Stores.open` of a defect."""
    return defect(url.removeprefix("exact:"), readonly=readonly)


class FindsMovedRows(ExactIndex):
    """What moved is still found in the old generation."""

    def _load(self, content: bytes) -> None:
        with patched(Held, "_hide", lambda *_: None):
            super()._load(content)

    def _follow(self) -> None:
        with patched(Held, "_hide", lambda *_: None):
            super()._follow()


class LosesARowOfEveryMove(ExactIndex):
    def move(self, ids: Sequence[Id], vectors: Floats, generation: int) -> None:
        super().move(ids[1:], vectors[1:], generation)


class RoundsScores(ExactIndex):
    def nearest(self, generation: int, queries: Floats, k: int) -> Hits:
        hits = super().nearest(generation, queries, k)
        return Hits(np.round(hits.scores, 2), hits.ids, hits.generations)


class ForgetsWhatItClosed(ExactIndex):
    """Changes are held in memory and never written."""

    def _commit(self, segment: Segment) -> None:
        if segment.kind == "move":
            assert self._held is not None
            self._held.apply(0, segment)
        else:
            super()._commit(segment)


class RollsBackAllButARow(ExactIndex):
    def rollback(self) -> None:
        name = self.ids(1, limit=1)[0]
        super().rollback()
        super().remove([name])


class SkipsARowBetweenPages(ExactIndex):
    def ids(self, generation: int, *, after: Id | None = None, limit: int = 10_000) -> list[Id]:
        return super().ids(generation, after=after, limit=limit)[1 if after is not None else 0 :]


class BringsRemovedRowsBack(ExactIndex):
    """Removing takes the new vector alone."""

    def _commit(self, segment: Segment) -> None:
        if segment.kind != "remove":
            super()._commit(segment)


class TakesAnything(ExactIndex):
    """Vectors are not looked at."""

    def move(self, ids: Sequence[Id], vectors: Floats, generation: int) -> None:
        try:
            super().move(ids, vectors, generation)
        except Exception:
            if len(vectors) and np.isnan(vectors).any():
                return
            raise


class LetsStrangersBegin(ExactIndex):
    def begin(self, generation: Generation) -> None:
        if len(self.generations()) == 1:
            super().begin(generation)


class ReturnsTooFew(ExactIndex):
    def nearest(self, generation: int, queries: Floats, k: int) -> Hits:
        return super().nearest(generation, queries, min(k, 10))


class DropsEquals(ExactIndex):
    """Of rows with the same vector one is found."""

    def nearest(self, generation: int, queries: Floats, k: int) -> Hits:
        hits = super().nearest(generation, queries, 2 * k)
        places = [np.sort(np.unique(row, return_index=True)[1])[:k] for row in hits.scores]
        if min(map(len, places), default=0) < k:
            return super().nearest(generation, queries, k)
        taken = [np.take_along_axis(of, np.stack(places), 1) for of in (hits.scores, hits.ids, hits.generations)]
        return Hits(*taken)


class MovesRowByRow(ExactIndex):
    """A batch that is killed half way has half happened."""

    def move(self, ids: Sequence[Id], vectors: Floats, generation: int) -> None:
        for row in range(len(ids)):
            super().move(ids[row : row + 1], vectors[row : row + 1], generation)
            time.sleep(0.02)


class ReadsOnlyAtOpening(ExactIndex):
    """A reader sees nothing of what a writer did since."""

    def _refresh(self) -> None:
        if not (self._readonly and self._content is not None):
            super()._refresh()


class LooksAtTheNewestFirst(ExactIndex):
    """A row that moves between the two looks is in neither."""

    def search(self, queries: Mapping[int, Floats], k: int, fusion: Fusion = "cosine") -> Hits:
        lists = []
        for generation in reversed(self.generations()):
            lists.append(self.nearest(generation.number, queries[generation.number], k))
            time.sleep(0.005)
        return merge(lists[::-1], k, fusion)
