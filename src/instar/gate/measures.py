"""Every figure of a comparison, with its interval and what it means."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from instar.gate import intervals
from instar.gate.flips import Flips, difference, excess, mean, share
from instar.gate.result import Figure, Measure


def measures(
    flips: Flips, changed: NDArray[np.bool_], scores: NDArray[np.float64] | None, binary: bool, level: float
) -> list[Measure]:
    """The measures of the answered items: flips and accuracy for marks of right and wrong, changes of size for scores.

    changed: where both versions do not say the same. scores: new minus old of a given score beside marks of right and wrong.
    """
    rows = _discrete(flips, changed, level) if binary else _continuous(flips, level)
    rows.append(
        Measure("changed", "changed answers", share(changed, flips.blocks, level), "share", "old and new do not say the same")
    )
    if binary and scores is not None and np.isfinite(scores).all():
        rows += _sizes(scores, flips.blocks, level, "score ")
    return rows


def _discrete(flips: Flips, changed: NDArray[np.bool_], level: float) -> list[Measure]:
    blocks = flips.blocks
    right, now = flips.before > 0.5, flips.after > 0.5
    lost, won = int(flips.negative.sum()), int(flips.positive.sum())
    old, new = float(right.mean()), float(now.mean())
    kept = []
    if right.any():
        inside = flips.of(right)
        still = share(inside.after > 0.5, inside.blocks, level)
        kept.append(
            Measure("kept", "kept of what was right (BTC)", still, "share", "of the items that were right, how many still are")
        )
    rows = [
        Measure("accuracy_change", "change of accuracy", difference(flips.after - flips.before, blocks, level), "share",
                "accuracy after minus before; equals positive minus negative flips"),
        Measure("nfr", "negative flips (NFR)", share(flips.negative, blocks, level), "share", "right before, wrong now"),
        *_noise(flips, level),
        Measure("pfr", "positive flips (PFR)", share(flips.positive, blocks, level), "share", "wrong before, right now"),
        Measure("nfr_mc", "inconsistent answers (NFR_mc)", share(~now & changed, blocks, level), "share",
                "wrong now and not what was said before: negative flips, and wrong answers that changed"),
        Measure("wrong_changed", "wrong answers that changed", share(~right & ~now & changed, blocks, level), "share",
                "wrong before and now, in another way"),
        *kept,
        Measure("nfr_by_chance", "negative flips of unrelated versions", Figure(old * (1 - new)), "share",
                "what NFR would be if the versions erred independently: accuracy before × error now"),
        Measure("mcnemar", "McNemar's test", Figure(float(intervals.mcnemar(lost, won))), "p",
                _mcnemar(lost, won, blocks)),
    ]  # fmt: skip
    same = ~changed & ~right & ~now
    for name, title, which in (
        ("both_right", "right before and now", right & now),
        ("both_wrong_same", "wrong before and now, the same answer", same),
        ("both_wrong_changed", "wrong before and now, another answer", ~right & ~now & changed),
    ):
        rows.append(Measure(name, title, Figure(int(which.sum())), "count", "items"))
    return rows


def _continuous(flips: Flips, level: float) -> list[Measure]:
    blocks = flips.blocks
    change = flips.after - flips.before
    rows = _sizes(change, blocks, level, "", flips.reach)
    fallen, risen = int(flips.negative.sum()), int(flips.positive.sum())
    return [
        *rows,
        Measure("nfr", "negative flips (NFR)", share(flips.negative, blocks, level), "share",
                "a mark that fell by more than the tolerance"),
        *_noise(flips, level),
        Measure("pfr", "positive flips (PFR)", share(flips.positive, blocks, level), "share",
                "a mark that rose by more than the tolerance"),
        Measure("sign_test", "sign test", Figure(float(intervals.mcnemar(fallen, risen))), "p",
                f"{fallen} marks fell and {risen} rose; how likely is a split as uneven by chance"),
    ]  # fmt: skip


def _sizes(
    change: NDArray[np.float64], blocks: NDArray[np.int64] | None, level: float, prefix: str, reach: float | None = None
) -> list[Measure]:
    """The smooth variants: by how much marks moved, and how far where they moved."""
    key = prefix.strip() and f"{prefix.strip()}_"
    rows = [
        Measure(
            f"{key}mean_change",
            f"{prefix}change of the mean",
            mean(change, blocks, level, reach),
            "score",
            "mean mark after minus before",
        )
    ]
    for name, title, moved in (("fall", "fall", change < 0), ("rise", "rise", change > 0)):
        if moved.any():
            inside = None if blocks is None else np.unique(blocks[moved], return_inverse=True)[1].astype(np.int64)
            size = mean(np.abs(change[moved]), inside, level)
            told = f"over the {int(moved.sum())} items whose mark moved that way"
            rows.append(Measure(f"{key}mean_{name}", f"{prefix}mean size of a {title}", size, "score", told))
    return rows


def _noise(flips: Flips, level: float) -> list[Measure]:
    if flips.noise is None:
        return []
    return [
        Measure("floor", "noise floor", share(flips.noise, flips.blocks, level), "share",
                "negative flips between two runs of the old version"),
        Measure("excess", "negative flips beyond the floor", excess(flips.excess, flips.blocks, True, level).figure, "share",
                "NFR minus the floor, averaged over the runs of the old version"),
    ]  # fmt: skip


def _mcnemar(lost: int, won: int, blocks: NDArray[np.int64] | None) -> str:
    told = f"{lost} items were lost and {won} won; how likely is a split as uneven by chance"
    return told if blocks is None else f"{told} (exact for single items; blocks are not in it)"
