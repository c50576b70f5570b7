"""`instar protocol`: what look-back, size and decomposition do for forecasters, the plain baselines beside them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from instar.cli.browse import Json
from instar.cli.judge import Jobs, Quiet, settings
from instar.errors import ShapeError


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(protocol)


def protocol(
    methods: Annotated[str, typer.Option(help="Comma-separated forecasters.")] = "transformer,patchtst,itransformer",
    data: Annotated[str | None, typer.Option(help="Your own table, or the name of a known data set.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="setting=value of the problem `forecast`.")] = None,
    analyses: Annotated[str, typer.Option(help="Comma-separated: look_back, depth, width, decomposition.")] = "",
    look_backs: Annotated[str, typer.Option(help="Rows of context to try.")] = "48,96,192,336",
    depths: Annotated[str, typer.Option(help="Layers to try.")] = "1,2,4,8",
    widths: Annotated[str, typer.Option(help="Widths to try.")] = "16,32,64,128",
    seeds: Annotated[int, typer.Option(help="Seeds, the same for every method; 3 or more give intervals.")] = 3,
    budget: Annotated[str, typer.Option(help="Training of one run, as 400steps.")] = "400steps",
    out: Annotated[Path, typer.Option(help="Folder for records and report.")] = Path("runs/protocol"),
    jobs: Jobs = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Ask of forecasters what the survey of Wen et al. asks: tables with intervals, as Markdown. Resumable.

    Examples:  `instar protocol --data ETTh1 --set horizon=96 --methods transformer,itransformer`
    ·  `instar protocol --data sales.csv --analyses look_back --look-backs 28,56,112`
    """
    from instar import files
    from instar.bench import protocol as running
    from instar.cli.progress import Line

    chosen, overrides = settings(set_ or [])
    if overrides:
        raise ShapeError("The protocol varies the methods itself: --set takes settings of the problem only, as horizon=96.")
    if data is not None:
        chosen["data"] = data
    question = running.Question(
        tuple(_words(methods)), chosen, _numbers("--look-backs", look_backs), _numbers("--depths", depths),
        _numbers("--widths", widths), budget, seeds,
    )  # fmt: skip
    with Line(quiet or as_json) as line:
        tables = running.run(question, out, analyses=_words(analyses) or running.ANALYSES, jobs=jobs, listener=line)
    text = running.markdown(tables)
    files.write(out / "protocol.md", text)
    typer.echo(json.dumps([asdict(table) for table in tables], indent=1) if as_json else text)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(option: str, text: str) -> tuple[int, ...]:
    words = _words(text)
    if not words or not all(word.isdecimal() and int(word) > 0 for word in words):
        raise ShapeError(f"{option} takes positive whole numbers between commas; received '{text}'.")
    return tuple(map(int, words))
