"""Suites: several problems under one question, with rules that turn what was measured into plain words. TOML beside the problems.

A rule holds for a method when all its comparisons do; each side is a formula of facts (see `instar.report.advice`), and a rule
with a fact that is not known says nothing.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from instar import cards, formula
from instar.cards import Metric
from instar.errors import CardError, FormulaError, UnknownNameError

_FOLDER = Path(__file__).resolve().parents[1] / "problems" / "suites"
_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
How = Literal["scratch", "swapped"]


@dataclass(frozen=True)
class Part:
    """One problem of a suite under fixed conditions; equal conditions of claims share their runs."""

    id: str
    task: str
    """The class of tasks that it stands for: local, retrieval, hierarchical, continuous."""
    problem: str
    measure: str
    budget: str
    title: str
    settings: dict[str, Any] = field(default_factory=dict)
    how: How = "scratch"
    likelihood: bool = False
    """Whether its measure is a likelihood of text, which the others are held against."""

    @property
    def metric(self) -> Metric:
        from instar import catalogue

        return catalogue.problem(self.problem).metric(self.measure)


@dataclass(frozen=True)
class Rule:
    """`when` all hold, `say` (with $facts) is said of the method; `each` part says it for itself with low, high and margin."""

    id: str
    when: list[str]
    say: str
    each: Literal["method", "part"] = "method"
    excludes: bool = False

    def holds(self, facts: Mapping[str, float]) -> bool:
        """Whether all comparisons hold; False where a fact is not known."""
        return all(self._holds(text, facts) for text in self.when)

    def _holds(self, text: str, facts: Mapping[str, float]) -> bool:
        left, compare, right = comparison(text)
        if not (formula.names(left) | formula.names(right)) <= facts.keys():
            return False
        return compare(formula.evaluate(left, facts), formula.evaluate(right, facts))


@dataclass(frozen=True)
class Suite:
    """A question, its parts and its rules."""

    slug: str
    title: str
    idea: str
    baseline: str
    causal: list[str]
    """What is compared where no later token may be read, unless methods are named."""
    bidirectional: list[str]
    """What is compared beside them where later tokens may be read."""
    parts: list[Part]
    rules: list[Rule]
    path: Path = field(metadata={"given": True})
    two_sided: str = ""
    """The baseline where later tokens may be read; `baseline` where none is named."""

    def against(self, *, causal: bool) -> str:
        """The baseline of such a question."""
        return self.baseline if causal else self.two_sided or self.baseline

    def chosen(self, *, causal: bool, how: How) -> list[Part]:
        """The parts that answer this question."""
        from instar import catalogue

        return [p for p in self.parts if p.how == how and (causal or not catalogue.problem(p.problem).causal)]


def comparison(text: str) -> tuple[str, Callable[[float, float], bool], str]:
    """`left <= right` as two formulas and what compares them. Raises FormulaError."""
    found = re.fullmatch(r"([^<>=]+)(<=|>=|<|>)([^<>=]+)", text)
    if not found:
        raise FormulaError(f"'{text}' is no comparison: expected two formulas with <, <=, > or >= between them.")
    left, sign, right = (part.strip() for part in found.groups())
    formula.names(left), formula.names(right)
    return left, _COMPARISONS[sign], right


@cache
def suites() -> dict[str, Suite]:
    """Every suite by its slug."""
    return {path.stem: read(path) for path in sorted(_FOLDER.glob("*.toml"))}


def suite(slug: str) -> Suite:
    """Raises UnknownNameError with the nearest names."""
    if slug not in suites():
        raise UnknownNameError.among("suite", slug, suites())
    return suites()[slug]


def read(path: Path) -> Suite:
    """A suite from its file. Raises CardError for anything that is not as it should be."""
    from instar import catalogue

    found = cards.typed(path, Suite)
    if found.slug != path.stem:
        raise CardError(f"{path}: 'slug' must be the file's name '{path.stem}', received '{found.slug}'.")
    for part in found.parts:
        card = catalogue.problem(part.problem)
        if part.metric.kind != "quality":
            raise CardError(f"{path}: parts.{part.id} measures {part.measure}, which is no quality of {card.slug}.")
    for address in (found.baseline, found.against(causal=False), *found.causal, *found.bidirectional):
        catalogue.parse(address)
    for rule in found.rules:
        for text in rule.when:
            try:
                comparison(text)
            except FormulaError as error:
                raise CardError(f"{path}: rules.{rule.id}: {error}") from error
    return found
