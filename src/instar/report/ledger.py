"""The ledger of claims as Markdown, and its place on a page: between two marker lines, never typed by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instar import files
from instar.errors import OutputError

BEGIN, END = "<!-- ledger: instar claims --into docs/claims.md -->", "<!-- end of ledger -->"


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """One line a claim: what the paper says, what was found here, the verdict."""
    lines = [
        "| method | claim | verdict here | improvement [95 % interval] | needed | from |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        why = (
            f" ({row['reason']})" if row["reason"] and row["value"] is not None else ""
        )  # beside a figure, which seems to say more
        cells = (row["method"], row["text"], f"**{row['verdict']}**{why}", found(row), needed(row), source(row))
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(lines)


def found(row: dict[str, Any]) -> str:
    """The improvement with its interval, or nothing."""
    interval = "" if row["interval"] is None else f" [{row['interval'][0]:.3g}, {row['interval'][1]:.3g}]"
    return "" if row["value"] is None else f"{row['value']:.3g}{interval}"


def source(row: dict[str, Any]) -> str:
    """What the interval is drawn from."""
    return str(row["drawn_from"]) if row["drawn_from"] in ("", "closed form") else f"{row['seeds']} {row['drawn_from']}"


def needed(row: dict[str, Any]) -> str:
    """What the claim asks of the improvement; of a figure that is held against a number, what it must be."""
    if row["kind"] == "untestable":
        return ""
    if row["kind"] == "parity":
        return f"within ±{row['margin']:g}"
    if row["kind"] == "exact":
        return f"= {row['against']}"
    if row["kind"] in ("threshold", "slope"):  # the figure itself is shown, not how far it lies beyond
        target = 1.0 if row["against"] is None else float(row["against"])
        higher = row["direction"] == "higher"
        return f"> {target + row['margin']:g}" if higher else f"< {target - row['margin']:g}"
    return f"> {row['margin']:g}"


def insert(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Replace what stands between the markers of `path`. Raises OutputError when there are none."""
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise OutputError(f"Cannot read {path}: {error.strerror}.") from error
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise OutputError(f"{path} has no place for the ledger: put the lines '{BEGIN}' and '{END}' where it belongs.")
    files.write(path, f"{before}{BEGIN}\n{markdown(rows)}\n{END}{after}")
