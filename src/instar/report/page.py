"""The page: everything that records say, in one file that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

from instar.bench.record import Record
from instar.bench.summary import Group, summarise
from instar.cards import Metric
from instar.report import columns, figures, plots, redo, scaling, shell, table, tuning, units, words
from instar.report.columns import Text
from instar.report.plots import Plot, Styles

_VERDICTS = {"holds": "better", "does not hold here": "worse", "partly": "undecided", "undecided": "undecided"}


@dataclass(frozen=True)
class Line:
    """One row of a table: a method with its cells."""

    address: str
    slot: int
    baseline: bool
    setting: str
    runs: int
    failures: list[str]
    cells: list[tuple[Metric, Text, float | None]]


@dataclass(frozen=True)
class Section:
    """One comparison, ready to be printed."""

    id: str
    group: Group
    title: str
    answer: words.Answer
    columns: list[Metric]
    lines: list[Line]
    full: list[tuple[str, list[tuple[Metric, list[Text]]]]]
    plots: dict[str, list[Plot]]
    lengths: list[dict[str, Any]]
    tuned: list[tuning.Tuned]
    redo: redo.Redo
    downloads: list[tuple[str, str, str]]
    references: str


def render(records: Sequence[Record], judgements: Sequence[Any] = ()) -> str:
    """The page as text. Everything from records is escaped by the templates; the plots are rewritten trees."""
    groups = summarise(records)
    styles = Styles.of([row.address for group in groups for row in group.rows])
    sections = [_section(group, styles, f"c{number}") for number, group in enumerate(groups, 1)]
    return shell.page(
        "page.html",
        sections=sections,
        claims=[_claim(j) for j in judgements],
        orphans=_orphans(records, groups),
        kinds=columns.KINDS,
        legend=table.LEGEND,
        header=columns.header,
    )


def _section(group: Group, styles: Styles, name: str) -> Section:
    metrics = columns.shown(group)
    drawn = figures.all_plots(group, styles, name)
    best = tuning.plot(group, styles, name)
    facts = redo.redo(group)
    bibtex = list(dict.fromkeys(source.bibtex for source in facts.sources if source.bibtex))
    return Section(
        id=name,
        group=group,
        title=group.card.title,
        answer=words.answer(group),
        columns=metrics,
        lines=[_line(group, row, metrics, styles) for row in group.rows],
        full=_full(group, metrics),
        plots={**drawn, "tuning": [best] if best else []},
        lengths=[_lengths(group, family) for family in scaling.scaled(group)],
        tuned=tuning.tuned(group),
        redo=facts,
        downloads=_downloads(group),
        references=plots.data_uri("text/plain", ("\n\n".join(bibtex) + "\n").encode()) if bibtex else "",
    )


def _line(group: Group, row: Any, metrics: list[Metric], styles: Styles) -> Line:
    cells = [
        (metric, columns.text(group, row, metric), row.cells[metric.id].value.value if metric.id in row.cells else None)
        for metric in metrics
    ]
    return Line(row.address, styles.slot(row.address), row.baseline, row.setting, len(row.runs), row.failures, cells)


def _full(group: Group, metrics: list[Metric]) -> list[tuple[str, list[tuple[Metric, list[Text]]]]]:
    """Every metric by kind, one line each; empty when the score card shows them all already."""
    every = columns.shown(group, everything=True)
    if len(every) == len(metrics):
        return []
    found = []
    for kind, name in columns.KINDS.items():
        lines = [(m, [columns.text(group, row, m) for row in group.rows]) for m in every if m.kind == kind]
        if lines:
            found.append((name, lines))
    return found


def _lengths(group: Group, family: scaling.Family) -> dict[str, Any]:
    """A cost at every length as a table, with the crossing of each method in words."""
    crossings = scaling.crossings(group, family)
    base = group.baseline.address if group.baseline else ""
    rows = []
    for row in group.rows:
        cells = [row.cells.get(m.id) for m in family.members]
        word = scaling.in_words(crossings[row.address], family.over, base) if row.address in crossings else ""
        rows.append((row.address, [units.quantity(c.value.value, family.first.unit) if c else "missing" for c in cells], word))
    heads = [units.number(x, 6) for x in family.lengths or []]
    return {"title": units.sentence(family.title), "over": family.over, "heads": heads, "rows": rows, "base": base}


def _downloads(group: Group) -> list[tuple[str, str, str]]:
    stem = f"instar-{group.problem}"
    return [
        (label, f"{stem}.{end}", plots.data_uri(kind, make(group).encode("utf-8", "replace")))
        for label, end, kind, make in (
            ("CSV", "csv", "text/csv", table.csv),
            ("JSON", "json", "application/json", table.as_json),
            ("Markdown", "md", "text/markdown", table.markdown),
            ("LaTeX", "tex", "text/plain", table.latex),
        )
    ]


def _claim(judgement: Any) -> dict[str, Any]:
    """A claim as the template prints it."""
    raw: Mapping[str, Any] = asdict(judgement) if is_dataclass(judgement) and not isinstance(judgement, type) else judgement
    names = ("method", "claim", "text", "source", "paper_value", "kind", "measure", "subject", "against", "direction", "margin",
             "verdict", "value", "interval", "seeds", "drawn_from", "reason", "command")  # fmt: skip
    found = {name: raw.get(name) for name in names}
    found["minutes"] = raw.get("core_minutes", raw.get("minutes"))
    found["mark"] = _VERDICTS.get(str(found["verdict"]), "")
    found["shown"] = "" if found["value"] is None else units.number(found["value"])
    low, high = found["interval"] or (None, None)
    found["around"] = "" if low is None or high is None else f"{units.number(low)} … {units.number(high)}"
    return found


def _orphans(records: Sequence[Record], groups: Sequence[Group]) -> list[str]:
    """Failures that no table can show: of the timing pass, which belongs to all methods."""
    return [f"The timing pass of {r['address']}: {r['status']}: {r['reason']}" for r in records
            if r["kind"] == "timing" and r["status"] != "ok"]  # fmt: skip
