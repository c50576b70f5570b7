"""How well scores tell anomalous rows from others: areas, F1 and its point-adjusted form, which flatters."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from instar.items import Items

Scores = NDArray[np.float64]
Labels = NDArray[np.bool_]
_Row = TypeVar("_Row", np.float64, np.bool_)


def segments(labels: Labels) -> list[tuple[int, int]]:
    """First row and the row after the last of each run of anomalous rows."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], labels.astype(np.int8), [0]])))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def roc_auc(scores: Scores, labels: Labels) -> Items:
    """The share of normal rows that an anomalous one scores above, ties counting half; an item is a run of anomalous rows."""
    normal = np.sort(scores[~labels])
    below, upto = (np.searchsorted(normal, scores, side=side) for side in ("left", "right"))
    share = (below + upto) / (2 * max(len(normal), 1))
    return _by_segment(share, labels)


def pr_auc(scores: Scores, labels: Labels) -> Items:
    """Average precision: the precision at the score of each anomalous row; an item is a run of them."""
    ordered = np.sort(scores)
    positive = np.sort(scores[labels])
    called = len(scores) - np.searchsorted(ordered, scores, side="left")
    right = len(positive) - np.searchsorted(positive, scores, side="left")
    return _by_segment(right / np.maximum(called, 1), labels)


def adjusted(scores: NDArray[_Row], labels: Labels) -> NDArray[_Row]:
    """Point adjustment, of scores or of calls: each row of a run of anomalous rows has the largest of the run.

    So the run counts as found whole where one row of it is called, at every threshold.
    """
    runs = np.array(segments(labels), dtype=np.int64).reshape(-1, 2)
    found = scores.copy()
    # a run may end after the last row, where reduceat takes no place: one row more, which no run reads
    largest = np.maximum.reduceat(np.append(scores, scores[:1]), runs.ravel())[::2]
    found[labels] = np.repeat(largest, runs[:, 1] - runs[:, 0])
    return found


def f1(called: Labels, labels: Labels) -> float:
    """2 · right / (called + anomalous)."""
    total = int(called.sum()) + int(labels.sum())
    return 2 * int((called & labels).sum()) / total if total else 0.0


def best_f1(scores: Scores, labels: Labels, *, adjust: bool = False) -> float:
    """The largest F1 over all thresholds: what a threshold chosen on the test rows themselves would give."""
    if adjust:
        scores = adjusted(scores, labels)
    order = np.argsort(-scores)
    ordered = scores[order]
    last = np.append(ordered[1:] != ordered[:-1], True)  # equal scores are called together
    right = np.cumsum(labels[order])[last]
    called = np.arange(1, len(scores) + 1)[last]
    return float((2 * right / (called + labels.sum())).max())


def _by_segment(share: Scores, labels: Labels) -> Items:
    runs = segments(labels)
    return Items([float(share[a:b].sum()) for a, b in runs], [float(b - a) for a, b in runs])
