"""The decision rule.

A budget is tested by an interval at the policy's level (95 %: each bound is wrong in 2.5 % of cases):

    fail        the lower bound lies above the budget
    pass        the upper bound lies below the budget
    undecided   the budget lies inside; with the number of items that would decide it

- Budgets of slices are a family of their own: a slice fails only if its p-value, adjusted over all of them (Holm), is at most
  (1 − level) / 2. Passing needs no adjustment, since every budget must pass.
- `max_flips` is counted on the very items, without statistics.
- An item that some run did not answer is in no interval. With such items nothing passes, and a budget fails only if it also does
  so when all of them are counted as kept.
- The change fails if any budget fails, passes if all pass, and is undecided otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import special

from instar.errors import PlanError
from instar.gate import intervals, plan
from instar.gate.flips import Excess, Flips, excess, mean
from instar.gate.policy import Limits, Policy
from instar.gate.result import Decision, Figure, Test
from instar.gate.words import counted, figure, percent


@dataclass(frozen=True)
class Scope:
    """Some of the items, with what is asked of them."""

    name: str
    chosen: NDArray[np.bool_]
    """[N] over all items, answered or not."""
    limits: Limits


def scopes(
    policy: Policy, columns: Mapping[str, Sequence[object]], coded: Mapping[str, tuple[list[str], NDArray[np.int64]]], n: int
) -> list[Scope]:
    """All items, then every slice that the policy names. Raises PlanError for a column or value that is not there."""
    found = [Scope("all items", np.ones(n, dtype=bool), policy)]
    for limits in policy.slices:
        if limits.column not in coded:
            known = ", ".join(columns) or "none"
            raise PlanError(f"The policy sets limits for the column '{limits.column}'; the items have the columns {known}.")
        names, codes = coded[limits.column]
        if limits.value is None:
            found += [Scope(f"{limits.column} = {name}", codes == code, limits) for code, name in enumerate(names)]
        elif limits.value in names:
            found.append(Scope(f"{limits.column} = {limits.value}", codes == names.index(limits.value), limits))
        else:
            raise PlanError(
                f"The policy sets limits for {limits.column} = {limits.value}, but no item is there; values are "
                f"{', '.join(names[:20])}. An empty slice is never passed in silence."
            )
    return found


def decide(flips: Flips, answered: NDArray[np.bool_], asked: Sequence[Scope], *, binary: bool, level: float) -> list[Test]:
    """Test every budget. `flips` holds the answered items only, in their order."""
    tests: list[Test] = []
    place = np.cumsum(answered) - 1
    for scope in asked:
        inside = flips.of(place[scope.chosen & answered])
        missing = int((scope.chosen & ~answered).sum())
        tests += _tests(scope, inside, missing, binary, level)
    return _adjusted(tests, level)


def overall(tests: Sequence[Test], missing: int) -> Decision:
    """The decision about the change."""
    if any(test.decision == "fail" for test in tests):
        return "fail"
    return "pass" if tests and not missing and all(test.decision == "pass" for test in tests) else "undecided"


def _tests(scope: Scope, flips: Flips, missing: int, binary: bool, level: float) -> list[Test]:
    limits, found = scope.limits, []
    if limits.max_nfr is not None:
        found.append(_nfr(scope.name, flips, limits.max_nfr, missing, level))
    if limits.max_accuracy_drop is not None:
        found.append(_drop(scope.name, flips, limits.max_accuracy_drop, missing, binary, level))
    if limits.max_flips is not None:
        found.append(_count(scope.name, flips, limits.max_flips, missing))
    return found


def _nfr(name: str, flips: Flips, budget: float, missing: int, level: float) -> Test:
    what = "negative flips" if flips.noise is None else "negative flips beyond the noise floor"
    if len(flips) == 0:
        return _unanswered(name, "max_nfr", budget, missing)
    tested = excess(flips.excess, flips.blocks, flips.noise is not None, level)
    return _shares(name, "max_nfr", what, tested, len(flips), budget, missing, level)


def _drop(name: str, flips: Flips, budget: float, missing: int, binary: bool, level: float) -> Test:
    if len(flips) == 0:
        return _unanswered(name, "max_accuracy_drop", budget, missing)
    fall = flips.before - flips.after
    if binary:
        return _shares(
            name,
            "max_accuracy_drop",
            "drop of accuracy",
            excess(fall, flips.blocks, True, level),
            len(flips),
            budget,
            missing,
            level,
        )
    found = mean(fall, flips.blocks, level)
    decision = _bounds(found, budget)
    p = None
    if found.low is not None and found.high is not None:
        error = (found.high - found.low) / (2 * float(special.ndtri(1 - intervals.tail(level))))
        p = float(special.ndtr((budget - found.value) / error)) if error else float(found.value <= budget)
        if missing and decision == "fail" and found.low * len(flips) / (len(flips) + missing) <= budget:
            decision = "undecided"
    decision = "undecided" if missing and decision == "pass" else decision
    words = f"{name}: drop of the mean mark {found.value:.4g}, budget {budget:g}"
    return Test(name, "max_accuracy_drop", len(flips), budget, found, decision, p, None, words)


def _shares(name: str, kind: str, what: str, tested: Excess, n: int, budget: float, missing: int, level: float) -> Test:
    decision = _bounds(tested.figure, budget)
    p = tested.p(budget)
    if missing:
        part = n / (n + missing)
        diluted = replace(tested, up=tested.up * part, down=tested.down * part, effective=tested.effective / part)
        if decision == "fail" and diluted.p(budget) > intervals.tail(level):
            decision = "undecided"
        decision = "undecided" if decision == "pass" else decision
    needed = None
    if decision == "undecided" and not missing:
        needed = plan.needed(tested.up, tested.down, budget, level, paired=tested.paired)
        needed = None if needed is None else max(n + 1, round(needed * n / tested.effective))
    words = f"{name}: {what} {figure(tested.figure, level)}, budget {percent(budget)}"
    return Test(name, kind, n, budget, tested.figure, decision, p, needed, words)  # type: ignore[arg-type]


def _count(name: str, flips: Flips, budget: int, missing: int) -> Test:
    broken = int(flips.certain.sum())
    decision: Decision = "fail" if broken > budget else "undecided" if missing else "pass"
    words = f"{name}: {counted(broken, 'item')} of {len(flips)} broke, {budget} allowed"
    return Test(name, "max_flips", len(flips), budget, Figure(broken, broken, broken), decision, None, None, words)


def _unanswered(name: str, kind: str, budget: float, missing: int) -> Test:
    words = f"{name}: none of its {counted(missing, 'item')} was answered by both versions"
    return Test(name, kind, 0, budget, Figure(0.0, 0.0, 1.0), "undecided", 1.0, None, words)  # type: ignore[arg-type]


def _bounds(found: Figure, budget: float) -> Decision:
    if found.low is None or found.high is None:
        return "undecided"
    return "fail" if found.low > budget else "pass" if found.high < budget else "undecided"


def _adjusted(tests: list[Test], level: float) -> list[Test]:
    """Holm's adjustment over the slices; the budgets of all items are what was asked first and stand alone."""
    places = [i for i, test in enumerate(tests) if test.scope != "all items" and test.p is not None]
    if len(places) < 2:
        return tests
    adjusted = intervals.holm([tests[i].p or 0.0 for i in places])
    for i, p in zip(places, adjusted, strict=True):
        test = tests[i]
        weak = test.decision == "fail" and p > intervals.tail(level)
        tests[i] = replace(test, p=float(p), decision="undecided" if weak else test.decision)
    return tests
