"""Metrics that are one quantity under several conditions (`prefill_seconds@256`, `@1024`, …), and where two such lines cross."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from instar.bench.summary import Group, Row
from instar.cards import Metric
from instar.report import units

_JOINING = frozenset(["a", "after", "and", "at", "by", "for", "from", "in", "of", "on", "over", "that", "the", "to", "with"])
"""Words that end no title."""


@dataclass(frozen=True)
class Family:
    """The metrics with the same name before the '@', in the order of the card."""

    name: str
    members: tuple[Metric, ...]

    @property
    def first(self) -> Metric:
        return self.members[0]

    @property
    def title(self) -> str:
        """The words that the titles of all members begin with, up to the last that says something by itself."""
        if len(self.members) == 1:
            return self.first.title
        words = _shared([m.title.split() for m in self.members])
        while words and (not words[-1] or words[-1] in _JOINING):
            words.pop()
        if not words:
            return self.name.replace("_", " ")
        return " ".join([*self.first.title.split()[: len(words) - 1], words[-1]])

    @property
    def over(self) -> str:
        return self.first.over or "condition"

    @property
    def lengths(self) -> list[float] | None:
        """The conditions as numbers, where all are positive numbers."""
        try:
            found = [float(condition(m)) for m in self.members]
        except ValueError:
            return None
        return found if min(found) > 0 and len(set(found)) == len(found) else None


@dataclass(frozen=True)
class Crossing:
    """How a line lies against the baseline's."""

    below_first: bool
    """Whether it is below at the shortest length."""
    at: tuple[float, ...]
    """Lengths where the lines cross, interpolated between measured lengths in log space."""
    shortest: float
    longest: float
    same: bool = False


def condition(metric: Metric) -> str:
    """What stands behind the '@' of a metric's id."""
    return metric.id.partition("@")[2]


def families(metrics: Sequence[Metric]) -> list[Family]:
    """The metrics by name, in the order of the card; numeric conditions in rising order.

    A metric without a condition is a family of its own, and no point of the line that has its name.
    """
    found: dict[tuple[str, str], list[Metric]] = {}
    for metric in metrics:
        found.setdefault(metric.id.partition("@")[:2], []).append(metric)
    result = []
    for (name, _), members in found.items():
        family = Family(name, tuple(members))
        if family.lengths is not None:
            family = Family(name, tuple(sorted(members, key=lambda m: float(condition(m)))))
        result.append(family)
    return result


def line(row: Row, family: Family) -> list[tuple[float, float]]:
    """(length, value) of one method, where it was measured."""
    pairs = zip(family.lengths or [], family.members, strict=False)
    return [(x, row.cells[m.id].value.value) for x, m in pairs if m.id in row.cells]


def scaled(group: Group) -> list[Family]:
    """The costs and times that were measured at two lengths or more."""
    return [
        f
        for f in families(group.metrics)
        if f.first.kind != "quality" and f.lengths is not None and any(len(line(row, f)) > 1 for row in group.rows)
    ]


def crossing(mine: Sequence[tuple[float, float]], theirs: Sequence[tuple[float, float]]) -> Crossing | None:
    """Where `mine` crosses `theirs`; None when they share fewer than two lengths."""
    other = dict(theirs)
    shared = [(x, y, other[x]) for x, y in mine if x in other and y > 0 and other[x] > 0]
    if len(shared) < 2:
        return None
    gaps = [(math.log(x), math.log(a / b)) for x, a, b in shared]
    signed = [(x, g) for x, g in gaps if g != 0]
    ends = (shared[0][0], shared[-1][0])
    if not signed:
        return Crossing(False, (), *ends, same=True)
    at = []
    for (x0, g0), (x1, g1) in itertools.pairwise(signed):
        if (g0 < 0) != (g1 < 0):
            at.append(math.exp(x0 + (x1 - x0) * g0 / (g0 - g1)))
    return Crossing(signed[0][1] < 0, tuple(at), *ends)


def crossings(group: Group, family: Family) -> dict[str, Crossing]:
    """By address: how each method lies against the baseline."""
    base = group.baseline
    if base is None:
        return {}
    found = {row.address: crossing(line(row, family), line(base, family)) for row in group.rows if row is not base}
    return {address: c for address, c in found.items() if c is not None}


def in_words(found: Crossing, over: str, base: str) -> str:
    """How a line of costs lies against the baseline, in words."""
    span = f"from {units.number(found.shortest, 6)} to {units.number(found.longest, 6)}"
    if found.same:
        return f"the same as {base} at every {over} {span}"
    if not found.at:
        return f"{'below' if found.below_first else 'above'} {base} at every {over} measured ({span})"
    places = [units.number(x, 2) if x < 100 else f"{round(x, 1 - math.floor(math.log10(x))):.0f}" for x in found.at]
    if len(places) == 1:
        return f"{'above' if found.below_first else 'below'} {base} from a {over} of about {places[0]} on"
    return f"crossing {base} at a {over} of about {', '.join(places[:-1])} and {places[-1]}"


def _shared(titles: Sequence[Sequence[str]]) -> list[str]:
    """The words that all titles begin with, whatever stands behind each."""
    plain = [[word.rstrip("@(,:×=") for word in title] for title in titles]
    equal = itertools.takewhile(lambda words: len(set(words)) == 1, zip(*plain, strict=False))
    return [words[0] for words in equal]
