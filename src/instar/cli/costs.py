"""`instar costs`: what a layer costs at each length, without training."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from instar.cli.browse import Json
from instar.cli.judge import Quiet
from instar.errors import PlanError

if TYPE_CHECKING:
    from instar.bench.curves import Curve

BASELINE = "softmax"


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(costs)


def costs(
    methods: Annotated[list[str], typer.Argument(help="Mixers or presets; softmax attention is always added.")],
    lengths: Annotated[str, typer.Option(help="Tokens, as 256,1024,4096; default: 256 to 16384 in doublings.")] = "",
    width: Annotated[int, typer.Option(min=1, help="Width of the layer.")] = 128,
    heads: Annotated[int, typer.Option(min=1, help="Heads of the layer.")] = 4,
    seconds: Annotated[float, typer.Option(min=0.1, help="Most seconds of one method at one length.")] = 60.0,
    out: Annotated[Path, typer.Option(help="Folder of the records.")] = Path("runs/costs"),
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Seconds, bytes saved for the backward pass and bytes of state of one layer at each length; nothing is trained.

    Each figure comes from a process of its own on one thread, so that what runs out of memory is told and harms nothing.
    Resumable: call it again and only what is missing runs.

    Examples:  `instar costs gla mamba2`  ·  `instar costs local_window --lengths 1024,4096,16384 --width 256 --heads 8`
    """
    from instar.bench import curves
    from instar.cli.progress import Line

    chosen = parse_lengths(lengths) or curves.LENGTHS
    with Line(quiet or as_json) as line:
        found = curves.measure(
            [BASELINE, *methods], out, lengths=chosen, layer=curves.Layer(width, heads), seconds=seconds, listener=line
        )
    if as_json:
        typer.echo(json.dumps({"out": str(out), "curves": [asdict(curve) for curve in found]}, indent=1))
        return
    for figure in curves.FIGURES:
        print_figure(found, figure)
    for curve in found:
        if curve.ended:  # it may have no line in any table
            typer.echo(f"{curve.address} ends at {curve.ended}")
    typer.echo(f"One layer, width {width}, {heads} heads, one sequence, one thread; records in {out}.")


def parse_lengths(text: str) -> list[int]:
    """`256,1024` as numbers. Raises PlanError."""
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise PlanError(f"--lengths expects whole numbers with commas between them, as 256,1024; received '{text}'.") from None


def print_figure(found: list[Curve], figure: str) -> None:
    """One table: a method a line, a length a column, the slope, and where it crosses the first method."""
    from rich.console import Console
    from rich.table import Table

    from instar.bench import curves
    from instar.report import units
    from instar.report.scaling import crossing, in_words

    metric = curves.FIGURES[figure]
    shown = [curve for curve in found if curve.line(figure)]
    if not shown:
        return
    lengths = sorted({length for curve in shown for length in curve.points})
    table = Table(title=units.sentence(metric.title), title_justify="left", box=None, pad_edge=False)
    for head in ("", *map(str, lengths), "slope", f"against {found[0].address}"):
        table.add_column(head, justify="left" if head == "" else "right")
    for curve in shown:
        cells = [units.quantity(p[figure], metric.unit) if (p := curve.points.get(n)) and figure in p else "" for n in lengths]
        slope = curves.slope(curve, figure)
        where = crossing(curve.line(figure), found[0].line(figure)) if curve is not found[0] else None
        word = in_words(where, metric.over or "", found[0].address) if where else ""
        table.add_row(curve.address, *cells, "" if slope is None else f"{round(slope, 2) + 0.0:.2f}", word)
    Console().print(table)
    typer.echo()
