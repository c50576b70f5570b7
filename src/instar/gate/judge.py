"""Judge a change from the predictions of both versions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime

import numpy as np

from instar.bench import environment
from instar.errors import DataError
from instar.gate import rule, slices, words
from instar.gate.broken import broken
from instar.gate.cautions import cautions
from instar.gate.flips import flips, mean, share
from instar.gate.measures import measures
from instar.gate.pairing import Pairs, pair
from instar.gate.policy import Policy
from instar.gate.predictions import Cases, Predictions
from instar.gate.result import Decision, Figure, Result, Side, Test

_SIGN = {"pass": "PASS", "fail": "FAIL", "undecided": "UNDECIDED"}
_SHOWN_MISSING = 50


def judge(
    old: Predictions,
    new: Predictions,
    *,
    again: Sequence[Predictions] = (),
    policy: Policy | None = None,
    task: str = "auto",
    metric: str = "",
    block: str = "",
    cases: Cases | None = None,
    command: str = "",
) -> Result:
    """Whether replacing `old` by `new` breaks what worked.

    Args:
        old, new: predictions over the same items.
        again: further runs of the old version, from which the noise floor is measured; without one the floor is 0.
        policy: budgets; the default allows 2 % of negative flips beyond the floor.
        task, metric: see `instar.gate.tasks`; found from the data where left open, and said.
        block: a column whose values are natural blocks (several questions on one document): items of a block are not
            independent, and the intervals know it.
        cases: labels, inputs and columns that the predictions do not carry themselves.

    Raises DataError (what does not join, no item, marks that are no numbers), PlanError, UnknownNameError. O(K² N + N log N).
    """
    begun, clock = datetime.now(UTC), time.perf_counter()
    policy = policy or Policy()
    pairs = pair(old, new, again, task=task, metric=metric, block=block, cases=cases)
    if not pairs.answered.any():
        raise DataError(f"No item was answered by both {old.name} and {new.name}; there is nothing to judge.")
    tolerance = 0.0 if pairs.binary else policy.tolerance
    places = np.flatnonzero(pairs.answered)
    found = flips(pairs.before[:, places], pairs.after[places], tolerance, None if pairs.blocks is None else pairs.blocks[places])
    columns = dict(pairs.columns)
    if pairs.labels is not None and pairs.task in ("classification", "multiple_choice") and "label" not in columns:
        columns["label"] = pairs.labels
    codes, left_out = slices.code(columns)
    asked = rule.scopes(policy, columns, codes, len(pairs.ids))
    tests = rule.decide(found, pairs.answered, asked, binary=pairs.binary, level=policy.level)
    missing = int((~pairs.answered).sum())
    decision = rule.overall(tests, missing)
    groups, ids = broken(pairs, found, places)
    rows = measures(found, pairs.changed[places], _score_change(pairs, places), pairs.binary, policy.level)
    by_id = {row.id: row.figure for row in rows}
    return Result(
        decision=decision,
        headline=_headline(decision, pairs, by_id, len(places)),
        reasons=_reasons(tests, missing),
        cautions=cautions(pairs, policy),
        old=_side(pairs.old, pairs.before[0], pairs, policy.level),
        new=_side(pairs.new, pairs.after, pairs, policy.level),
        items=len(pairs.ids),
        missing=missing,
        missing_ids=_missing(pairs),
        blocks=None if found.blocks is None else int(found.blocks.max()) + 1,
        task=pairs.task,
        metric=pairs.metric,
        chosen=pairs.why,
        binary=pairs.binary,
        level=policy.level,
        tolerance=tolerance,
        floor=by_id.get("floor"),
        floor_runs=[version.name for version in pairs.again],
        tests=tests,
        measures=rows,
        slices=slices.measure(found, {name: (names, c[places]) for name, (names, c) in codes.items()}, policy.level),
        slices_left_out=left_out,
        broken=groups,
        broken_ids=ids,
        fixed=int(found.positive.sum()),
        policy={key: value for key, value in asdict(policy).items() if value is not None},
        environment=environment.describe(),
        command=command,
        started=begun.isoformat(timespec="seconds"),
        seconds=time.perf_counter() - clock,
    )


def _headline(decision: Decision, pairs: Pairs, figures: dict[str, Figure], n: int) -> str:
    nfr = figures["nfr"]
    verb = "broke" if pairs.binary else "fell"
    share_ = f"{words.percent(nfr.value)} of {words.counted(n, 'item')} {verb}"
    beyond = ""
    if "excess" in figures:
        excess = figures["excess"].value
        beyond = f", over all runs {words.percent(abs(excess))} {'more' if excess >= 0 else 'less'} than noise does"
    moved = figures["accuracy_change"] if pairs.binary else figures["mean_change"]
    how = f"accuracy {_signed(moved.value * 100, ' points')}" if pairs.binary else f"the mean mark {_signed(moved.value)}"
    return f"{_SIGN[decision]}: {share_}{beyond}; {how}."


def _signed(value: float, unit: str = "") -> str:
    if value == 0:
        return "unchanged"
    return f"{'up' if value > 0 else 'down'} {abs(value):.3g}{unit}"


def _reasons(tests: Sequence[Test], missing: int) -> list[str]:
    order = {"fail": 0, "undecided": 1, "pass": 2}
    told = []
    for test in sorted(tests, key=lambda t: order[t.decision]):
        text = f"{test.words}: {test.decision}."
        if test.decision == "undecided" and test.kind != "max_flips" and not missing:
            if test.figure.low is None:
                text += " The items do not tell how marks vary (too few items or blocks, or marks that are all alike)."
            elif test.items == 0 or test.figure.low > test.budget:
                pass  # the sentence says why
            elif test.needed is not None:
                text += f" About {words.counted(test.needed, 'item')} would decide, if the shares stay as they are."
            elif test.budget == 0 and test.kind == "max_nfr":
                text += " A budget of 0 cannot be passed by a sample; for a fixed list of items set max_flips = 0."
            else:
                text += " No realistic number of items would decide: what was seen lies on the budget."
        told.append(text)
    if missing:
        told.append(f"{words.counted(missing, 'item')} without an answer: nothing passes while answers are missing.")
    return told


def _side(version: Predictions, marks: np.ndarray, pairs: Pairs, level: float) -> Side:
    inside = ~np.isnan(marks)
    blocks = None
    if pairs.blocks is not None:
        blocks = np.unique(pairs.blocks[inside], return_inverse=True)[1].astype(np.int64)
    if not inside.any():
        figure = Figure(0.0)
    elif pairs.binary:
        figure = share(marks[inside], blocks, level)
    else:
        figure = mean(marks[inside], blocks, level)
    timed = version.seconds[np.isfinite(version.seconds)] if version.seconds is not None else np.empty(0)
    latency = {f"p{q}": float(np.percentile(timed, q)) for q in (50, 95)} if len(timed) else {}
    return Side(version.name, figure, int((~inside).sum()), latency, dict(version.costs), dict(version.facts))


def _score_change(pairs: Pairs, places: np.ndarray) -> np.ndarray | None:
    if not pairs.binary or pairs.metric == "score" or pairs.old.scores is None or pairs.new.scores is None:
        return None
    return np.asarray(pairs.new.scores[places] - pairs.old.scores[places])


def _missing(pairs: Pairs) -> dict[str, str]:
    told: dict[str, str] = {}
    for i in np.flatnonzero(~pairs.answered)[:_SHOWN_MISSING]:
        one = pairs.ids[i]
        silent = [v for v in (pairs.old, pairs.new, *pairs.again) if v.outputs[i] is None]
        told[one] = "; ".join(f"{v.name}: {v.errors.get(one, 'no answer')}" for v in silent)
    return told
