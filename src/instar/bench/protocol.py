"""The protocol of the survey of forecasting transformers (Wen et al. 2023, arXiv 2202.07125) for any methods on any data.

Three analyses: does a longer look-back help, does a larger network help, does it help to take trend and season apart. Each is a
row of comparisons with the plain baselines always among them, in a folder of its own; called again, only what is missing runs.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from instar import catalogue
from instar.bench.compare import Listener, compare
from instar.bench.plan import Request
from instar.bench.statistics import Estimate
from instar.bench.summary import Row, summarise
from instar.errors import PlanError

Analysis = Literal["look_back", "depth", "width", "decomposition"]
ANALYSES = get_args(Analysis)
PLAIN = ("repeat_last", "seasonal_naive", "ridge_ar", "dlinear")
"""Beside the problem's baseline, rlinear: no network is shown without them."""
_TITLES = {
    "look_back": "Does a longer look-back help?",
    "depth": "Do more layers help?",
    "width": "Does a wider network help?",
    "decomposition": "Does it help to take trend and season apart?",
}


@dataclass(frozen=True)
class Question:
    """What is asked of which methods.

    settings: of the problem `forecast`. look_backs, depths, widths: what is tried. budget, seeds: of every run.
    """

    methods: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    look_backs: tuple[int, ...] = (48, 96, 192, 336)
    depths: tuple[int, ...] = (1, 2, 4, 8)
    widths: tuple[int, ...] = (16, 32, 64, 128)
    budget: str = "400steps"
    seeds: int = 3


@dataclass(frozen=True)
class Step:
    """One comparison of an analysis."""

    column: str
    request: Request
    renamed: dict[str, str] = field(default_factory=dict)
    """Address in the records -> how its row is called."""


@dataclass(frozen=True)
class Table:
    """What an analysis found: of each method and column the mean squared error, or why there is none."""

    analysis: str
    title: str
    columns: list[str]
    rows: dict[str, dict[str, Estimate | str]]


def run(
    question: Question,
    out: Path,
    *,
    analyses: Sequence[str] = ANALYSES,
    jobs: int | None = None,
    listener: Listener | None = None,
) -> list[Table]:
    """Every analysis that is named.

    Raises PlanError for an unknown analysis or a method that is no forecaster, and what `compare` raises.
    """
    if unknown := set(analyses) - set(ANALYSES):
        raise PlanError(f"There is no analysis {', '.join(sorted(unknown))}; there are {', '.join(ANALYSES)}.")
    for address in question.methods:
        card = catalogue.parse(address).card
        if card.interface != "Forecaster":
            raise PlanError(f"The protocol compares forecasters; {address} is a {card.interface or card.kind}.")
    return [_analysis(name, question, out, jobs, listener) for name in analyses]


def steps(analysis: str, question: Question) -> Iterator[Step]:
    """The comparisons of an analysis."""
    every = (*PLAIN, *(m for m in question.methods if m not in PLAIN))

    def request(methods: Sequence[str], settings: dict[str, Any], overrides: dict[str, dict[str, Any]]) -> Request:
        asked = {**question.settings, **settings}
        return Request(
            "forecast", tuple(methods), settings=asked, overrides=overrides, seeds=question.seeds, budget=question.budget
        )

    if analysis == "look_back":
        for rows in question.look_backs:
            yield Step(str(rows), request(every, {"context": rows}, {}))
    elif analysis in ("depth", "width"):
        sized = [m for m in question.methods if analysis in _arguments(m)]
        for size in question.depths if analysis == "depth" else question.widths:
            yield Step(str(size), request((*PLAIN, *sized), {}, {m: {analysis: size} for m in sized}))
    else:
        yield Step("as it is", request(every, {}, {}))
        for way, column in (("trend", "trend apart"), ("norm", "normalised")):
            for method in question.methods:
                if _wrapped(method):
                    overrides = {"decomposed": {"method": method, "way": way}}
                    yield Step(column, request((*PLAIN, "decomposed"), {}, overrides), {"decomposed": method})


def markdown(tables: Sequence[Table]) -> str:
    """The tables, and under each what is to be read from it."""
    parts = []
    for table in tables:
        lines = [
            f"## {table.title}",
            "",
            "| method | " + " | ".join(table.columns) + " |",
            "|---" * (len(table.columns) + 1) + "|",
        ]
        for name, cells in table.rows.items():
            lines.append(f"| {name} | " + " | ".join(_shown(cells.get(column)) for column in table.columns) + " |")
        parts.append("\n".join([*lines, "", *sentences(table)]))
    return "\n\n".join(parts) + "\n"


def sentences(table: Table) -> list[str]:
    """In words: how the error of each network changes over the columns, and whether any plain method is ahead."""
    plain = {name for name in table.rows if name in (*PLAIN, "rlinear")}
    said = []
    for name, cells in table.rows.items():
        found = {column: cell.value for column in table.columns if isinstance(cell := cells.get(column), Estimate)}
        if name in plain or len(found) < 2:
            continue
        first, best = found[next(iter(found))], min(found, key=found.__getitem__)
        rivals = [cell.value for other in plain for cell in table.rows[other].values() if isinstance(cell, Estimate)]
        ahead = f"; the best plain method has {min(rivals):.4g}" if rivals else ""
        said.append(
            f"- {name}: from {first:.4g} ({next(iter(found))}) to {found[best]:.4g} at best ({best}), "
            f"{100 * (1 - found[best] / first):.0f} % less{ahead}."
        )
    return said


def _analysis(name: str, question: Question, out: Path, jobs: int | None, listener: Listener | None) -> Table:
    rows: dict[str, dict[str, Estimate | str]] = {}
    columns: list[str] = []
    for number, step in enumerate(steps(name, question)):
        found = compare(step.request, out / name / f"{number:02d}", jobs=jobs, timed=False, listener=listener)
        if step.column not in columns:
            columns.append(step.column)
        for row in summarise(found.records())[0].rows:
            if row.address in step.renamed or step.column not in rows.get(row.address, {}):
                rows.setdefault(step.renamed.get(row.address, row.address), {})[step.column] = _cell(row)
    return Table(name, _TITLES[name], columns, rows)


def _cell(row: Row) -> Estimate | str:
    """The error; why there is none where every run failed."""
    if "mse" in row.cells:
        return row.cells["mse"].value
    return row.failures[0] if row.failures else "not run"


def _shown(cell: Estimate | str | None) -> str:
    if not isinstance(cell, Estimate):
        return cell or ""
    if cell.interval is None:
        return f"{cell.value:.4g}"
    low, high = cell.interval
    return f"{cell.value:.4g} [{low:.4g}, {high:.4g}]"


def _arguments(address: str) -> set[str]:
    return set(inspect.signature(catalogue.get(address)).parameters)


def _wrapped(address: str) -> bool:
    """Whether `decomposed` can stand around it."""
    from instar.forecasting.decomposed import Decomposed
    from instar.forecasting.neural import NeuralForecaster

    cls = catalogue.get(address)
    return issubclass(cls, NeuralForecaster) and cls.learn is NeuralForecaster.learn and not issubclass(cls, Decomposed)
