"""Ranks at every stage of a backfill, against a search made anew for each stage."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from instar.upgrade.ranks import Asked, Gallery, average_precision, ranks, recall

N, Q, D = 200, 12, 6


@pytest.fixture(scope="module")
def made() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    return {name: draw.standard_normal((n, D)).astype(np.float32) for name, n in (("do", N), ("dn", N), ("qo", Q), ("qn", Q))}


def searched(made: dict[str, np.ndarray], query: int, new: np.ndarray, mixing: str, itself: bool) -> np.ndarray:
    """The rank of every document by sorting, as a search at that stage gives it."""
    scores = np.where(new, made["dn"] @ made["qn"][query], made["do"] @ made["qo"][query])
    if itself:
        scores[query] = -np.inf
    if mixing == "rank":
        places = np.empty(N)
        for group in (np.flatnonzero(new), np.flatnonzero(~new)):
            places[group[np.argsort(-scores[group])]] = np.arange(len(group))
        scores = -places - 0.25 * new  # of equal places the old one first
    found = np.empty(N)
    found[np.argsort(-scores, kind="stable")] = np.arange(1, N + 1)
    return found


@pytest.mark.parametrize("relevant", [1, 25])
@pytest.mark.parametrize("mixing", ["scores", "rank"])
@pytest.mark.parametrize("itself", [False, True])
def test_as_searching_at_every_stage(made: dict[str, np.ndarray], relevant: int, mixing: str, itself: bool) -> None:
    draw = np.random.default_rng(1)
    gallery = Gallery.of(draw.permutation(N), 7)
    targets = [draw.choice(np.setdiff1d(np.arange(N), [q]), relevant, replace=False) for q in range(Q)]
    rows = {side: torch.from_numpy(made[side][gallery.order]).T for side in ("do", "dn")}
    (found,) = ranks(
        Asked(np.arange(Q), targets, itself),
        gallery,
        [(lambda q: torch.from_numpy(made["qo"][q]) @ rows["do"], mixing)],
        lambda q: torch.from_numpy(made["qn"][q]) @ rows["dn"],
    )
    for stage, cut in enumerate(gallery.cuts):
        new = np.isin(np.arange(N), gallery.order[:cut])
        for q in range(Q):
            np.testing.assert_array_equal(found[q][:, stage], searched(made, q, new, mixing, itself)[targets[q]])


def test_equal_scores_share_the_middle_rank() -> None:
    gallery = Gallery.of(np.arange(5), 1)
    same = [(lambda q: torch.zeros(len(q), 5), "scores")]
    (found,) = ranks(Asked(np.array([0]), [np.array([3])], False), gallery, same, lambda q: torch.zeros(len(q), 5))
    np.testing.assert_array_equal(found[0], [[3.0, 3.0]])


def test_marks_are_those_of_scikit_learn() -> None:
    draw = np.random.default_rng(2)
    scores = draw.permutation(50).astype(np.float32)
    relevant = draw.choice(50, 6, replace=False)
    order = np.empty(50)
    order[np.argsort(-scores)] = np.arange(1, 51)
    found = [order[relevant][:, None].astype(np.float32)]
    truth = np.isin(np.arange(50), relevant)
    assert average_precision(found)[0, 0] == pytest.approx(average_precision_score(truth, scores))
    for k in (1, 5, 20):
        assert recall(found, k)[0, 0] == pytest.approx(truth[np.argsort(-scores)[:k]].sum() / min(k, 6))
