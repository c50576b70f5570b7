"""Recall and average precision of every arm at every stage of a backfill, by query."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from instar.data.collection import Collection, Vectors
from instar.errors import DataError
from instar.retrieval.fusion import Calibration
from instar.upgrade import ranks as ranking
from instar.upgrade import truth
from instar.upgrade.arms import Arm
from instar.upgrade.ranks import Asked, Gallery, Mixing, Scores
from instar.upgrade.split import Answered, Split

FUSIONS = ("cosine", "quantile", "rank")
_CHOOSING = 300
"""Queries by which the fusion of an arm is chosen."""
_CALIBRATING = 200
_LEVEL = 0.01
"""Less recall than this is no reason for a fusion that is further from the scores."""

Told = Callable[[int], None]


@dataclass(frozen=True)
class Measured:
    """An arm's marks: [Q, B + 1] each, by query and stage."""

    recall: NDArray[np.float64]
    ap: NDArray[np.float64]


@dataclass(frozen=True)
class Bench:
    """What all arms are measured on."""

    collection: Collection
    old: Vectors
    new: Vectors
    split: Split
    gallery: Gallery
    k: int

    def asked(self, queries: NDArray[np.int64]) -> Asked:
        """Queries with what they should find in the gallery."""
        return truth.asked(self.collection, self.new, self.gallery.order, queries, self.k)


def answered(collection: Collection, old: Vectors, new: Vectors, k: int) -> Answered:
    """How well each encoder alone answers queries among rows of its own: see `known`; 0 where nothing should be found."""

    def by(gallery: NDArray[np.int64], queries: NDArray[np.int64]) -> NDArray[np.float64]:
        should = truth.asked(collection, new, gallery, queries, k)
        alone = []
        for side in (old, new):
            rows = torch.from_numpy(side.documents[gallery]).T
            scores = _scores(torch.from_numpy(side.documents if side.queries is None else side.queries), rows)
            (ranks,) = ranking.ranks(should, Gallery.of(gallery, 1), [(scores, "scores")], scores)
            alone.append(Measured(ranking.recall(ranks, k), ranking.average_precision(ranks)))
        found = np.zeros((len(queries), 4))
        found[np.isin(queries, should.queries)] = known(*alone)
        return found

    return by


def known(as_it_is: Measured, everything: Measured) -> NDArray[np.float64]:
    """[Q, 4]: recall and average precision of the search as it is (the first stage) and of the new encoder alone (the last)."""
    return np.stack([as_it_is.recall[:, 0], as_it_is.ap[:, 0], everything.recall[:, -1], everything.ap[:, -1]], 1)


def measure(
    bench: Bench, arms: Sequence[Arm], fusions: Sequence[str], queries: Asked, told: Told | None = None
) -> list[Measured]:
    """Marks of each arm with its fusion; arms of one space are measured together."""
    found: list[Measured | None] = [None] * len(arms)
    rows_old = torch.from_numpy(bench.old.documents[bench.gallery.order]).T
    for space in dict.fromkeys(arm.space for arm in arms):
        places = [i for i, arm in enumerate(arms) if arm.space == space]
        first = arms[places[0]]
        rows_new = first.new_documents[torch.from_numpy(bench.gallery.order)].T
        olds: list[tuple[Scores, Mixing]] = []
        for i in places:
            scale = calibration(bench, arms[i]) if fusions[i] == "quantile" else None
            olds.append((_scores(arms[i].old_queries, rows_old, scale), "rank" if fusions[i] == "rank" else "scores"))
        for i, result in zip(
            places, ranking.ranks(queries, bench.gallery, olds, _scores(first.new_queries, rows_new)), strict=True
        ):
            found[i] = Measured(ranking.recall(result, bench.k), ranking.average_precision(result))
        if told is not None:
            told(len(places))
    return [one for one in found if one is not None]


def fusions(bench: Bench, arms: Sequence[Arm], told: Told | None = None) -> list[str]:
    """For each arm the first fusion that is level with the best, in mean recall over the stages, on the queries for choosing."""
    queries = bench.asked(bench.split.choose[:_CHOOSING])
    if not len(queries.queries):
        return ["cosine"] * len(arms)
    means = []
    for fusion in FUSIONS:
        try:
            found = measure(bench, arms, [fusion] * len(arms), queries)
            means.append([one.recall[:, 1:-1].mean() for one in found])
        except DataError:  # scores without spread cannot be calibrated
            means.append([-1.0] * len(arms))
        if told is not None:
            told(1)
    table = np.array(means)
    return [FUSIONS[i] for i in np.argmax(table >= table.max(0) - _LEVEL, axis=0)]


def calibration(bench: Bench, arm: Arm) -> Calibration:
    """The scores of generation 0 on the scale of generation 1, from queries and documents at random."""
    chosen = torch.from_numpy(bench.split.choose[:_CALIBRATING])
    rows = torch.from_numpy(bench.gallery.order)
    old = arm.old_queries[chosen] @ torch.from_numpy(bench.old.documents)[rows].T
    new = arm.new_queries[chosen] @ arm.new_documents[rows].T
    if bench.split.itself:
        strangers = chosen.unsqueeze(1) != rows
        old, new = old[strangers], new[strangers]
    return Calibration.fit({0: old.flatten().numpy(), 1: new.flatten().numpy()}, reference=1)


def _scores(queries: Tensor, rows: Tensor, scale: Calibration | None = None) -> Scores:
    def scores(chosen: NDArray[np.int64]) -> Tensor:
        found = queries[torch.from_numpy(chosen)] @ rows
        return found if scale is None else torch.from_numpy(scale(0, found.numpy()))

    return scores
