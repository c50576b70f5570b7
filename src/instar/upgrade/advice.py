"""What to do, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from instar.gate.intervals import mean_interval
from instar.gate.words import percent
from instar.report import units
from instar.upgrade import shown
from instar.upgrade.arms import KEEP, NO_MAP, TWO_ENCODERS
from instar.upgrade.choosing import MARGIN, Choosing, Taken
from instar.upgrade.result import Arm, Choice, During, Figure, Truth


@dataclass(frozen=True)
class Advice:
    """The words of a report, and the arms that they are about."""

    headline: str
    sentences: list[str]
    choices: list[Choice]
    now: str
    """The arm to take before anything is re-encoded."""
    during: During
    """The arm to take while it is."""
    gain: Figure
    """Recall with everything re-encoded minus that of the search as it is."""


def advise(
    arms: Sequence[Arm],
    marks: Mapping[str, NDArray[np.float64]],
    blocks: NDArray[np.int64] | None,
    *,
    truth: Truth,
    k: int,
    level: float,
    hours: float | None = None,
) -> Advice:
    """Choose, and say why.

    Args:
        arms: those that ran, the simplest first. marks: recall [Q, stages] of each. hours: what may be spent on encoding.
    """
    choosing = Choosing(arms, marks, blocks, level)
    stages = [point.fraction for point in next(a for a in arms if a.id == TWO_ENCODERS).curve]
    taken = [choosing.at(stage) for stage in range(len(stages))]
    during = choosing.during()
    old, full = marks[KEEP][:, 0], marks[TWO_ENCODERS][:, -1]
    estimate = mean_interval(full - old, blocks, level, reach=1.0)
    gain = Figure(estimate.value, estimate.low, estimate.high)
    choices = [_choice(one, stages[one.stage]) for one in taken]
    verdict = _verdict(gain, truth)
    sentences = {
        "unknown": lambda: [
            _found(old, full, k, truth),
            _first(taken[0], choosing, old, k),
            *_way(during, choosing, stages, k),
            *_budget(choices, hours, k),
        ],
        "worse": lambda: [
            _found(old, full, k, truth),
            "Stay with the old encoder: nothing is gained by the change.",
            *_way(during, choosing, stages, k),
        ],
        "level": lambda: [
            _found(old, full, k, truth),
            "Stay with the old encoder, unless it has to go: no gain shows on these queries. If it has to go: "
            + _first(taken[0], choosing, old, k),
            *_way(during, choosing, stages, k),
            *_budget(choices, hours, k),
        ],
        "better": lambda: [
            _first(taken[0], choosing, old, k),
            *_way(during, choosing, stages, k),
            *_beyond(taken[-1], choosing),
            *_budget(choices, hours, k),
            _found(old, full, k, truth),
        ],
    }[verdict]()  # fmt: skip
    return Advice(_headline(verdict, gain, taken[0], old, full, k), sentences, choices, taken[0].arm.id, _during(during), gain)


def _verdict(gain: Figure, truth: Truth) -> str:
    if truth == "neighbours":
        return "unknown"
    if gain.low is not None and gain.low > 0:
        return "better"
    return "worse" if gain.high is not None and gain.high < 0 else "level"


def _headline(verdict: str, gain: Figure, first: Taken, old: NDArray[np.float64], full: NDArray[np.float64], k: int) -> str:
    if verdict == "unknown":
        value = percent(first.arm.curve[0].recall.value, 1)
        if first.arm.id == KEEP:
            return (
                f"Without re-encoding, no way of asking the old index comes nearer to the new encoder than the old one's {value}."
            )
        return f"Without re-encoding anything, {_doing(first.arm)} finds {value} of what the new encoder would find."
    if verdict == "worse":
        return f"Keep the old encoder: the new one finds {shown.points(-gain.value, signed=False)} less of what is relevant."
    if verdict == "level":
        return f"No gain shows: recall at {k} is {percent(old.mean(), 1)} now and {percent(full.mean(), 1)} with the new encoder."
    start = f"The new encoder lifts recall at {k} from {percent(old.mean(), 1)} to {percent(full.mean(), 1)}"
    if first.arm.id == KEEP:
        return f"{start}; nothing of that comes without re-encoding."
    share = (first.arm.curve[0].recall.value - old.mean()) / (full.mean() - old.mean())
    part = (
        f"{percent(share)} of the gain"
        if share < 1
        else f"all of the gain and more ({percent(first.arm.curve[0].recall.value, 1)})"
    )
    return f"{start}; {_doing(first.arm)} gives {part} before a single row is re-encoded."


def _found(old: NDArray[np.float64], full: NDArray[np.float64], k: int, truth: Truth) -> str:
    if truth == "neighbours":
        return (
            f"Nobody said what is relevant, so every figure says how much of what the new encoder finds is found (the old one: "
            f"{percent(old.mean(), 1)}). Whether the new encoder is better, only queries with known answers or labels can tell."
        )
    before, after = percent(old.mean(), 1), percent(full.mean(), 1)
    return f"Recall at {k} is {before} now, and {after} once the new encoder has re-encoded every row."


def _first(taken: Taken, choosing: Choosing, old: NDArray[np.float64], k: int) -> str:
    """What to do before anything is re-encoded."""
    point = taken.arm.curve[0]
    if taken.arm.id == KEEP:
        return f"Until rows are re-encoded, keep asking with the old encoder.{_rival(taken, choosing)}"
    gained = shown.points(point.recall.value - old.mean(), signed=False)
    certain = "" if taken.sure else " (level with simpler ways within chance)"
    text = f"At once, without re-encoding a row: {_doing(taken.arm)}; recall at {k} becomes {percent(point.recall.value, 1)} "
    text += f"({gained} more than now){certain}."
    if taken.arm.id == NO_MAP:
        return text + _rival(taken, choosing)
    effort = f" Fitting it takes {units.quantity(taken.arm.fit_seconds, 's')}" if taken.arm.fit_seconds else ""
    return text + (effort + "." if effort else "")


def _rival(taken: Taken, choosing: Choosing) -> str:
    """Why the best of the others is not taken before anything is re-encoded, where a plain way is."""
    best = max((a for a in choosing.arms if a.id != TWO_ENCODERS), key=lambda a: a.curve[0].recall.value)
    found = percent(best.curve[0].recall.value, 1)
    if best.id == taken.arm.id:
        return " No map does better." if taken.arm.id == NO_MAP else " No map and no switch of the query encoder does better."
    one, other = choosing.marks[best.id][:, 0], choosing.marks[taken.arm.id][:, 0]
    name = f"{_doing(best)[0].upper()}{_doing(best)[1:]}"
    if not choosing.better(one, other) or (one - other).mean() < MARGIN:
        return f" {name} finds {found}, which is level within chance."
    return f" {name} finds {found}, but no more than rows do that are re-encoded in the time that fitting it takes."


def _way(during: Taken, choosing: Choosing, stages: list[float], k: int) -> list[str]:
    """What to do while rows are re-encoded, from where on it pays, and where it dips."""
    arm = during.arm
    how = "" if arm.fusion == "cosine" else f", merging old and new rows by {_MERGED[arm.fusion]}"
    found = [f"While rows are re-encoded: {_doing(arm)}{how}."]
    old = choosing.marks[KEEP][:, 0]
    ahead = [choosing.better(choosing.marks[arm.id][:, s], old) for s in range(len(stages))]
    pays = next((s for s in range(len(stages)) if all(ahead[s:])), None)
    means = choosing.marks[arm.id].mean(0)
    if pays is not None and pays > 0:
        found[0] += f" It is ahead of the search as it is now from {percent(stages[pays])} on."
    start = max(range(len(stages)), key=lambda s: float(means[s] - means[s:].min()))
    lowest = start + int(np.argmin(means[start:]))
    if lowest > start and choosing.better(choosing.marks[arm.id][:, start], choosing.marks[arm.id][:, lowest]):
        found.append(
            f"Mind the dip: with {percent(stages[lowest])} re-encoded recall at {k} is {percent(means[lowest], 1)}, below the "
            f"{percent(means[start], 1)} of {_at(stages[start])}. To avoid it, re-encode beside the index and switch at the end."
        )
    return found


def _at(share: float) -> str:
    return "the start" if share == 0 else percent(share)


def _beyond(last: Taken, choosing: Choosing) -> list[str]:
    """Where a head's vectors are better than the new encoder's own, once all rows have them."""
    if last.arm.kind != "trained head" or not choosing.better(
        choosing.marks[last.arm.id][:, -1], choosing.marks[TWO_ENCODERS][:, -1]
    ):
        return []
    return [
        f"Keep the head {last.arm.title.partition(':')[0]} when all rows are re-encoded: its own vectors then give "
        f"{percent(last.arm.curve[-1].recall.value, 1)}, more than the new encoder alone, because it learnt from your labels."
    ]


def _budget(choices: list[Choice], hours: float | None, k: int) -> list[str]:
    if hours is None:
        return []
    if choices[-1].hours is None:
        return ["How much can be re-encoded in the hours given cannot be told: no speed is known (give --rate)."]
    within = [c for c in choices if c.hours is not None and c.hours <= hours]
    if not within:
        return [f"{hours:g} hours do not even do for what the advised map is fitted on: keep the old encoder meanwhile."]
    best = within[-1]
    return [
        f"Within {hours:g} hours {percent(best.fraction)} of the rows can be re-encoded: recall at {k} becomes "
        f"{percent(best.recall.value, 1)} ({best.words})."
    ]


_LARGE = 0.05
"""Share of the documents from which on the first k hold relevant ones by chance."""
_MERGED = {"quantile": "quantiles of their scores", "rank": "places in the two lists"}


def _doing(arm: Arm) -> str:
    if arm.id == KEEP:
        return "keeping the old encoder"
    if arm.id == NO_MAP:
        return "switching only the query encoder (no map)"
    if arm.id == TWO_ENCODERS:
        return "asking with both encoders"
    return f"{'the head' if arm.kind == 'trained head' else 'the map'} {arm.title.partition(':')[0]}"


def _choice(taken: Taken, fraction: float) -> Choice:
    point = taken.arm.curve[min(taken.stage, len(taken.arm.curve) - 1)]
    words = _doing(taken.arm)
    if fraction == 1.0 and taken.arm.kind != "trained head":
        words = "the new encoder alone"
    return Choice(fraction, point.hours, taken.arm.id, point.recall, taken.sure, words)


def _during(taken: Taken) -> During:
    return During(taken.arm.id, taken.arm.fusion, taken.sure, _doing(taken.arm))


def cautions(
    *,
    truth: Truth,
    chance: float,
    margin: float,
    within: bool,
    rows: int,
    documents: int,
    searched: int,
    k: int,
    same: bool,
    lacking: int,
    pairs: int,
    width: int,
    labels_left_out: str,
    cut: Sequence[str],
    failed: Sequence[Arm],
) -> list[str]:
    """What a reader must know before believing the figures."""
    found = []
    if same:
        found.append("Old and new vectors are the same: there is nothing to change. Were the right ones given?")
    if truth == "neighbours":
        found.append(
            "Right is here what the new encoder finds: by that measure it cannot be wrong, and the old one cannot be better."
        )
    if labels_left_out:
        found.append(f"The labels were left out: {labels_left_out}.")
    if truth == "labels":
        found.append("Right is here any document of the same label; a search has to find more particular things.")
    if chance > margin:
        found.append(
            f"So few queries were asked that predictions miss held-out ones by ±{shown.points(chance, signed=False)} by chance "
            "alone; ask more."
        )
    elif not within:
        found.append("Some predictions lie further from the held-out queries than chance explains: read those arms with care.")
    if rows > documents:
        found.append(
            f"The figures are of {units.number(documents)} documents; among {units.number(rows)} rows more is mistaken for the "
            "right one, and every recall is lower."
        )
    if k > _LARGE * searched:
        found.append(
            f"{k} results are {percent(k / searched)} of the {units.number(searched)} documents searched: so much of what is "
            "relevant is found by chance. Take more documents, or a smaller k."
        )
    if lacking:
        found.append(f"{units.number(lacking)} documents have no vector on one side; they were left out.")
    found += cut
    if pairs < 2 * width:
        found.append(
            f"Maps were fitted on {units.number(pairs)} pairs of vectors with {width} dimensions; more pairs would help them."
        )
    if failed:
        found.append(f"Not run: {', '.join(arm.title for arm in failed)} (see the table for why).")
    return found
