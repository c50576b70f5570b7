"""How well scores tell anomalous rows from others: areas, F1 and its point-adjusted form, which flatters."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from instar.items import Items

Scores = NDArray[np.float64]
Labels = NDArray[np.bool_]


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


def adjusted(called: Labels, labels: Labels) -> Labels:
    """Point adjustment: a run of anomalous rows counts as found whole where one row of it is called."""
    found = called.copy()
    for first, last in segments(labels):
        if called[first:last].any():
            found[first:last] = True
    return found


def f1(called: Labels, labels: Labels) -> float:
    """2 · right / (called + anomalous)."""
    total = int(called.sum()) + int(labels.sum())
    return 2 * int((called & labels).sum()) / total if total else 0.0


def best_f1(scores: Scores, labels: Labels, *, adjust: bool = False) -> float:
    """The largest F1 over all thresholds: what a threshold chosen on the test rows themselves would give."""
    thresholds = np.unique(scores)
    if len(thresholds) > 400:
        thresholds = np.quantile(scores, np.linspace(0, 1, 401))
    calls = (scores >= threshold for threshold in thresholds)
    return max(f1(adjusted(called, labels) if adjust else called, labels) for called in calls)


def _by_segment(share: Scores, labels: Labels) -> Items:
    runs = segments(labels)
    return Items([float(share[a:b].sum()) for a, b in runs], [float(b - a) for a, b in runs])
