"""The page by domain: its problems, what ran on them, which did best at each budget, and what is missing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from instar import catalogue
from instar.bench import summary
from instar.bench.claims import Judgement
from instar.bench.record import Store
from instar.bench.summary import Cell, Group, Row
from instar.cards import Metric
from instar.report import units
from instar.shelf import views
from instar.shelf.entries import entries
from instar.site import text


def page(judgements: Sequence[Judgement], results: Path) -> str:
    """Each domain with its problems and, for each comparison among the records, the methods from best to worst."""
    return "\n\n".join(_parts(judgements, compared(results))) + "\n"


def compared(results: Path) -> list[Group]:
    """The comparisons by quality among the records: one problem, data, settings and budget each, of two methods at least."""
    first = {card.primary for card in catalogue.problems().values()}
    folders = [folder for folder in sorted(results.glob("*")) if (folder / "runs").is_dir()]
    groups = [group for folder in folders for group in summary.summarise(list(Store(folder).all()), first)]
    return [group for group in groups if len(ranked(group)) > 1]


def ranked(group: Group) -> list[tuple[Row, Cell]]:
    """The methods of a comparison by the problem's first metric, the best first; those with too few seeds are left out."""
    metric = _primary(group)
    found = [(row, row.cells[metric.id]) for row in group.rows if metric.kind == "quality" and metric.id in row.cells]
    told = [(row, cell) for row, cell in found if cell.value.interval is not None]
    return sorted(told, key=lambda pair: pair[1].value.value, reverse=metric.direction == "higher")


def _parts(judgements: Sequence[Judgement], groups: Sequence[Group]) -> Iterator[str]:
    yield "# By domain"
    yield (
        "What ran on the problems of each domain, and what did best at each budget. Models and data are small: the order says "
        "nothing of large pre-trained models; and where the last column is empty, undecided or equal, nothing of these."
    )
    for domain in views.by_domain(entries(), judgements):
        yield f"## {text.plain(domain.title[:1].upper() + domain.title[1:])}"
        if domain.gaps:
            yield "\n".join(f"- {text.plain(gap)}" for gap in domain.gaps)
        for problem in domain.problems:
            here = [group for group in groups if group.problem == problem.slug]
            yield f"### [{text.plain(problem.title)}](problems/{text.file(problem.slug)}.md)"
            yield from (_comparison(group) for group in here)
            if not here:
                yield "No comparison by quality, of two methods and three seeds at least, is among the records."


def _comparison(group: Group) -> str:
    metric = _primary(group)
    settings = {**group.key["settings"], "data": str(group.key["data"] or "")[:8]}
    said = [f"budget {group.key['budget']}", *(f"{key} {value}" for key, value in settings.items() if value not in (None, ""))]
    rows = [
        [_named(row), _figure(cell), str(cell.value.seeds), "baseline" if row.baseline else cell.verdict]
        for row, cell in ranked(group)
    ]
    rows[0][1] = f"**{rows[0][1]}**"
    about = f"{units.sentence(metric.title)}, {metric.direction} is better ({', '.join(said)})."
    return f"{text.plain(about)}\n\n{text.table(['method', text.plain(metric.unit), 'seeds', 'against the baseline'], rows)}"


def _primary(group: Group) -> Metric:
    card = catalogue.problem(group.problem)
    return card.metric(card.primary)


def _named(row: Row) -> str:
    slug, shown = row.address.partition(":")[0], text.code(row.address)
    return f"[{shown}](methods/{text.file(slug)}.md)" if slug in catalogue.methods() else shown


def _figure(cell: Cell) -> str:
    low, high = cell.value.interval or (None, None)
    around = "" if low is None or high is None else f" [{units.number(low)}, {units.number(high)}]"
    return text.plain(f"{units.number(cell.value.value)}{around}")
