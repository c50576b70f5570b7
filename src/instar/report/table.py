"""The score card for a terminal and for other documents."""

from __future__ import annotations

import csv as tables
import io
import json
from typing import TYPE_CHECKING, Any

from instar.bench.summary import Group
from instar.report import columns, units

if TYPE_CHECKING:
    from rich.table import Table

_STYLES = {"better": "green", "worse": "red"}
_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        **{c: "\\" + c for c in "&%$#_{}"},
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
        "×": r"$\times$",
        "−": "$-$",
        "µ": r"$\mu$",
        "–": "--",
        "…": r"\dots{}",
        "▲": r"$\blacktriangle$",
        "▼": r"$\blacktriangledown$",
        "∞": r"$\infty$",
    }
)
LEGEND = "▲ better  ▼ worse  = equal within the margin  ? undecided, against the baseline; ± is a 95 % interval, a range min–max."


def table(group: Group) -> Table:
    """The score card as a rich table: a line a metric, a column a method, the baseline first (a terminal is narrow)."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    result = Table(
        title=Text(title(group)),
        caption=Text(" ".join([LEGEND, *columns.floors(group)])),
        box=box.SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
    )
    result.add_column("")
    for row in group.rows:
        head = Text(units.printable(row.address), style="bold")
        head.append("\nbaseline" if row.baseline else "", style="dim")
        head.append(f"\n{len(row.failures)} failed" if row.failures else "", style="red")
        result.add_column(head, justify="right")
    for metric in columns.shown(group):
        cells = [Text(columns.header(group, metric))]
        for row in group.rows:
            found = columns.text(group, row, metric)
            cell = Text(found.value or "missing", style=_STYLES.get(found.verdict, "") if found.value else "dim")
            cell.append(f" {found.spread}" if found.spread else "", style="dim")
            cell.append(f"\n{found.against} {found.glyph}".rstrip() if found.against else "")
            cell.append("\nbusy machine" if found.busy else "", style="yellow")
            cells.append(cell)
        result.add_row(*cells)
    return result


def title(group: Group) -> str:
    """Problem and budget in a line."""
    budget = group.key.get("budget")
    return group.card.title + (f", {budget} a run" if budget else ", times only")


def grid(group: Group) -> list[list[str]]:
    """The score card as plain strings, with its header."""
    metrics = columns.shown(group)
    rows = [["method", *(columns.header(group, m) for m in metrics)]]
    for row in group.rows:
        line = [row.address + (" (baseline)" if row.baseline else "")]
        for metric in metrics:
            found = columns.text(group, row, metric)
            words = [found.value or "missing", found.spread, found.glyph, "(busy machine)" if found.busy else ""]
            line.append(" ".join(w for w in words if w))
        rows.append(line)
    return rows


def markdown(group: Group) -> str:
    """The score card as a Markdown table."""
    rows = [[_cell(c) for c in line] for line in grid(group)]
    rule = ["---", *("---:" for _ in rows[0][1:])]
    body = "\n".join(f"| {' | '.join(line)} |" for line in [rows[0], rule, *rows[1:]])
    return f"{body}\n\n{' '.join([LEGEND, *columns.floors(group)])}\n"


def latex(group: Group) -> str:
    """The score card as a LaTeX tabular (packages booktabs and amssymb)."""
    rows = [[" ".join(c.split()).translate(_LATEX) for c in line] for line in grid(group)]
    lines = [" & ".join(line) + r" \\" for line in rows]
    head = [r"\begin{tabular}{l" + "r" * (len(rows[0]) - 1) + "}", r"\toprule", lines[0], r"\midrule"]
    return "\n".join([*head, *lines[1:], r"\bottomrule", r"\end{tabular}", ""])


def figures(group: Group) -> list[dict[str, Any]]:
    """Every figure of the comparison, missing ones included, one object each."""
    found = []
    for row in group.rows:
        for metric in columns.shown(group, everything=True):
            cell = row.cells.get(metric.id)
            entry: dict[str, Any] = {
                "method": row.address,
                "baseline": row.baseline,
                "setting": row.setting,
                "metric": metric.id,
                "unit": metric.unit,
                "better": metric.direction,
                "floor": group.floors[metric.id].value if metric.id in group.floors else None,
            }
            if cell is None:
                entry["missing"] = columns.why_missing(group, row, metric)
            else:
                entry |= {"value": cell.value.value, "low": cell.value.low, "high": cell.value.high, "n": cell.value.seeds}
                if cell.difference is not None:
                    kind = "difference" if metric.kind == "quality" else "ratio"
                    far = cell.difference
                    entry |= {"against_baseline": kind, "distance": far.value, "distance_low": far.low, "distance_high": far.high}
                entry |= {"verdict": cell.verdict, "busy_machine": cell.busy}
            found.append(entry)
    return found


_FIELDS = [
    *("method", "baseline", "setting", "metric", "unit", "better", "floor", "value", "low", "high", "n"),
    *("against_baseline", "distance", "distance_low", "distance_high", "verdict", "busy_machine", "missing"),
]


def csv(group: Group) -> str:
    """Every figure of the comparison, one line each."""
    return sheet(_FIELDS, [[entry.get(f) for f in _FIELDS] for entry in figures(group)])


def as_json(group: Group) -> str:
    """What `csv` says, with what was compared."""
    return json.dumps({**group.key, "figures": figures(group)}, indent=1, allow_nan=False) + "\n"


def sheet(header: list[str], rows: list[list[Any]]) -> str:
    """A CSV file. Texts that a spreadsheet would take for a formula get a leading apostrophe."""
    out = io.StringIO()
    writer = tables.writer(out, lineterminator="\n")
    writer.writerows([[_inert(value) for value in row] for row in [header, *rows]])
    return out.getvalue()


def _inert(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def _cell(text: str) -> str:
    """Text in a Markdown table: no cell, tag or link may be opened by it."""
    for sign in "\\`*_[]<>|":
        text = text.replace(sign, "\\" + sign)
    return " ".join(text.split())
