"""Exact ranks of relevant documents at every stage of a backfill, without searching again for each stage.

Documents are re-encoded bucket by bucket. At stage j the buckets before j hold new vectors and the others old ones, so the rank
of a document with score t is 1 + Σ_{b<j} #{new scores of b above t} + Σ_{b≥j} #{old scores of b above t}. Counting once a bucket,
under the document's old and its new score, gives all stages at the price of one sort instead of a search a stage.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Mixing = Literal["scores", "rank"]
"""Old and new rows compared by score (after a calibration, if any), or by place in the list of their own generation."""

_CELLS = 8_000_000
"""Scores that are held at once."""


@dataclass(frozen=True)
class Gallery:
    """The documents that are searched, bucket by bucket in the order in which they are re-encoded."""

    order: NDArray[np.int64]
    """[N], places of documents, the first to be re-encoded first."""
    cuts: list[int]
    """[B + 1], where buckets begin and end in that order; the first is 0, the last N."""

    @property
    def stages(self) -> list[float]:
        """[B + 1], the share of re-encoded documents at each stage (but for rounding)."""
        return [i / (len(self.cuts) - 1) for i in range(len(self.cuts))]

    @classmethod
    def of(cls, order: NDArray[np.int64], buckets: int = 10) -> Gallery:
        """Buckets of (nearly) equal size."""
        return cls(order, [round(i * len(order) / buckets) for i in range(buckets + 1)])


@dataclass(frozen=True)
class Asked:
    """Queries with the places of what they should find; both refer to the collection."""

    queries: NDArray[np.int64]
    """[Q] places among the queries."""
    relevant: Sequence[NDArray[np.int64]]
    """[Q] places of relevant documents, all in the gallery."""
    itself: bool
    """Whether a query is a document, which is not searched for itself."""


Scores = Callable[[NDArray[np.int64]], Tensor]
"""Places of queries -> their scores [q, N] with the documents in the gallery's order, in memory of their own."""


@dataclass(frozen=True)
class _Sorted:
    """Scores of some queries with every bucket sorted, to count from."""

    scores: Tensor
    buckets: list[Tensor]

    @classmethod
    def of(cls, scores: Tensor, cuts: list[int]) -> _Sorted:
        # numpy sorts floats with vector instructions, torch does not
        parts = (np.sort(scores[:, a:b].numpy(), axis=1) for a, b in pairwise(cuts))
        return cls(scores, [torch.from_numpy(part) for part in parts])

    def above(self, thresholds: Tensor) -> Tensor:
        """[B, q, R]: how many of each bucket lie above each threshold [q, R]; those that equal it count half."""
        found = []
        for part in self.buckets:
            below, upto = (torch.searchsorted(part, thresholds, right=right) for right in (False, True))
            found.append(part.shape[1] - (below + upto) / 2)
        return torch.stack(found)


def ranks(asked: Asked, gallery: Gallery, olds: Sequence[tuple[Scores, Mixing]], new: Scores) -> list[list[NDArray[np.float32]]]:
    """For each of several ways to score old rows, and each query, the ranks [R, B + 1] of its relevant documents at every stage.

    They count from 1; equal scores share the middle rank. The new scores are computed and sorted once for all.
    O(Q · N · (D + log N)) a way.
    """
    place = np.full(int(gallery.order.max()) + 1, -1, dtype=np.int64)
    place[gallery.order] = np.arange(len(gallery.order))
    found: list[list[NDArray[np.float32]]] = [[] for _ in olds]
    step = max(1, _CELLS // len(gallery.order))
    for start in range(0, len(asked.queries), step):
        part = slice(start, start + step)
        chosen = asked.queries[part]
        lengths, targets = _padded([place[r] for r in asked.relevant[part]])
        own = place[chosen] if asked.itself else np.full(len(chosen), -1)
        rows = np.flatnonzero(own >= 0)

        def scored(by: Scores, chosen: NDArray[np.int64] = chosen, rows: Any = rows, own: Any = own) -> _Sorted:
            scores = by(chosen)
            scores[rows, own[rows]] = -torch.inf
            return _Sorted.of(scores, gallery.cuts)

        after = scored(new)
        for way, (old, mixing) in enumerate(olds):
            result = _staged(scored(old), after, targets, gallery.cuts, mixing)
            found[way] += [result[row, :length] for row, length in enumerate(lengths)]
    return found


def _padded(targets: list[NDArray[np.int64]]) -> tuple[list[int], Tensor]:
    lengths = list(map(len, targets))
    padded = torch.zeros(len(targets), max(lengths), dtype=torch.int64)
    for row, one in enumerate(targets):
        padded[row, : len(one)] = torch.from_numpy(one)
    return lengths, padded


def _staged(old: _Sorted, new: _Sorted, targets: Tensor, cuts: list[int], mixing: Mixing) -> NDArray[np.float32]:
    """[q, R, B + 1] ranks."""
    thresholds = [side.scores.gather(1, targets) for side in (old, new)]
    if mixing == "rank":  # places in lists of their own: the other side's scores do not matter
        above = [torch.stack([side.above(t)] * 2, 1) for side, t in zip((old, new), thresholds, strict=True)]
    else:
        above = [torch.stack([side.above(t) for t in thresholds], 1) for side in (old, new)]  # [B, threshold, q, R] each
    none = torch.zeros_like(above[0][:1])
    olds = torch.cat([above[0].flip(0).cumsum(0).flip(0), none])  # [B + 1, …]: the buckets from j on
    news = torch.cat([none, above[1].cumsum(0)])  # the buckets before j
    stage = torch.arange(len(cuts)).view(-1, 1, 1)
    bucket = torch.bucketize(targets, torch.tensor(cuts[1:]), right=True)
    moved = bucket < stage  # [B + 1, q, R]: whether the document is new at stage j
    which = moved.long().unsqueeze(1)
    # Its own score lies among those counted, as half a tie.
    if mixing == "scores":
        rank = (olds + news).gather(1, which).squeeze(1) + 0.5
    else:
        own = torch.where(which.bool(), news, olds).gather(1, which).squeeze(1) + 0.5
        done = torch.tensor(cuts).view(-1, 1, 1)
        others = torch.where(moved, cuts[-1] - done, done)
        rank = own + torch.minimum(own - 1 + moved, others)  # of equal places the old one comes first
    return np.asarray(rank.permute(1, 2, 0).float().numpy())


def recall(found: Sequence[NDArray[np.float32]], k: int) -> NDArray[np.float64]:
    """[Q, B + 1]: the share of the relevant documents (of k, where there are more) among the first k."""
    return np.stack([(r <= k).sum(0) / min(k, len(r)) for r in found]).astype(np.float64)


def average_precision(found: Sequence[NDArray[np.float32]]) -> NDArray[np.float64]:
    """[Q, B + 1]: the mean over relevant documents of (relevant ones up to it) / (its rank)."""
    parts = []
    for r in found:
        ordered = np.sort(r, axis=0)
        parts.append((np.arange(1, len(r) + 1)[:, None] / ordered).mean(0))
    return np.stack(parts).astype(np.float64)
