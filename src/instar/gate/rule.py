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
from instar.gate.slices import MOST_VALUES, parts
from instar.gate.values import named
from instar.gate.words import counted, figure, percent

ALL = "all items"
"""The scope whose budgets stand alone; slices are named "column = value"."""


@dataclass(frozen=True)
class Scope:
    """Some of the items, with what is asked of them."""

    name: str
    chosen: NDArray[np.int64]
    """Places of its items among all, answered or not."""
    limits: Limits


def scopes(
    policy: Policy, columns: Mapping[str, Sequence[object]], coded: Mapping[str, tuple[list[str], NDArray[np.int64]]], n: int
) -> list[Scope]:
    """All items, then every slice that the policy names. Raises PlanError for a column or value that is not there."""
    found = [Scope(ALL, np.arange(n), policy)]
    exact: dict[str, tuple[list[str], NDArray[np.int64]]] = {}
    for limits in policy.slices:
        column, value = limits.column, limits.value
        if column not in columns:
            known = ", ".join(columns) or "none"
            raise PlanError(f"The policy sets limits for the column '{column}'; the items have the columns {known}.")
        if column not in coded or value is not None:  # a value may be named in any column, however many there are
            exact.setdefault(column, named(columns[column]))
        names, codes = (
            exact[column] if column not in coded or (value is not None and value not in coded[column][0]) else coded[column]
        )
        if value is None and len(names) > MOST_VALUES:
            raise PlanError(
                f"The policy sets limits for every value of '{column}', but it has {len(names)}, more than {MOST_VALUES}; "
                "name the values that matter, or use a column that sorts items into fewer kinds."
            )
        if value is not None and value not in names:
            some = ", ".join(dict.fromkeys([*names[:20], *(coded[column][0] if column in coded else ())]))
            raise PlanError(
                f"The policy sets limits for {column} = {value}, but no item is there; values are {some}"
                f"{' …' if len(names) > 20 else ''}. An empty slice is never passed in silence."
            )
        wanted = names if value is None else [value]
        places = parts(codes, len(names)) if value is None else [np.flatnonzero(codes == names.index(value))]
        found += [Scope(f"{column} = {name}", inside, limits) for name, inside in zip(wanted, places, strict=True)]
    return found


def decide(flips: Flips, answered: NDArray[np.bool_], asked: Sequence[Scope], *, binary: bool, level: float) -> list[Test]:
    """Test every budget. `flips` holds the answered items only, in their order."""
    tests: list[Test] = []
    place = np.cumsum(answered) - 1
    for scope in asked:
        there = answered[scope.chosen]
        inside = flips if there.all() and scope.name == ALL else flips.of(place[scope.chosen[there]])
        tests += _tests(scope, inside, int((~there).sum()), binary, level)
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
    n = len(flips)
    if n == 0:
        return _unanswered(name, "max_accuracy_drop", budget, missing)
    fall = flips.before - flips.after
    if binary:
        tested = excess(fall, flips.blocks, True, level)
        return _shares(name, "max_accuracy_drop", "drop of accuracy", tested, n, budget, missing, level)
    found = mean(fall, flips.blocks, level, flips.reach)
    words = f"{name}: drop of the mean mark {found.value:.4g}, budget {budget:g}"
    if found.low is None or found.high is None:
        return Test(name, "max_accuracy_drop", n, budget, found, "undecided", None, None, f"{words}, spread unknown")
    normal = float(special.ndtri(1 - intervals.tail(level)))
    error = (found.value - found.low) / normal  # of the side that fails, so that p and the bound say the same
    far = budget * (n + missing) / n  # with missing items counted as kept
    p = float(special.ndtr((far - found.value) / error)) if error > 0 else float(found.low <= far)
    decision = _decided(found, budget, p, missing, level)
    half = (found.high - found.low) / (2 * normal)
    needed = None if missing or decision != "undecided" else plan.needed_mean(found.value, half, n, budget, level)
    return Test(name, "max_accuracy_drop", n, budget, found, decision, p, needed, words)


def _shares(name: str, kind: str, what: str, tested: Excess, n: int, budget: float, missing: int, level: float) -> Test:
    part = n / (n + missing)  # missing items are counted as kept
    p = replace(tested, up=tested.up * part, down=tested.down * part, effective=tested.effective / part).p(budget)
    decision = _decided(tested.figure, budget, p, missing, level)
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


def _decided(found: Figure, budget: float, p: float, missing: int, level: float) -> Decision:
    if found.low is not None and found.low > budget and (p <= intervals.tail(level) or not missing):
        return "fail"
    return "pass" if found.high is not None and found.high < budget and not missing else "undecided"


def _adjusted(tests: list[Test], level: float) -> list[Test]:
    """Holm's adjustment over the slices; the budgets of all items are what was asked first and stand alone."""
    places = [i for i, test in enumerate(tests) if test.scope != ALL and test.p is not None]
    if len(places) < 2:
        return tests
    adjusted = intervals.holm([tests[i].p or 0.0 for i in places])
    for i, p in zip(places, adjusted, strict=True):
        test = tests[i]
        if test.decision == "fail" and p > intervals.tail(level):
            words = f"{test.words}; alone it would fail, but among {len(places)} budgets of slices chance does as much"
            test = replace(test, decision="undecided", words=words)
        tests[i] = replace(test, p=float(p))
    return tests
