"""`instar suite`: several problems under one question, answered in one page."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from instar.cli.browse import Json
from instar.cli.judge import Jobs, Quiet
from instar.errors import PlanError

BYTES: dict[str, float] = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(suite)


def suite(
    name: Annotated[str, typer.Argument(help="The suite; there is `length`.")] = "length",
    length: Annotated[int, typer.Option(min=1, help="Tokens of an input.")] = 4096,
    memory: Annotated[str, typer.Option(help="What reading it may take, as 500MB; default: no limit.")] = "",
    latency: Annotated[str, typer.Option(help="What reading it may take, as 50ms; default: no limit.")] = "",
    causal: Annotated[bool, typer.Option(help="Whether no token may read a later one.")] = True,
    swapped: Annotated[
        bool, typer.Option("--swapped", help="Swap into a trained model instead of training from scratch.")
    ] = False,
    layers: Annotated[int, typer.Option(min=1, help="Layers of your model.")] = 12,
    width: Annotated[int, typer.Option(min=1, help="Width of your model.")] = 128,
    heads: Annotated[int, typer.Option(min=1, help="Heads of your model.")] = 4,
    methods: Annotated[str, typer.Option(help="Comma-separated mixers instead of the suite's own.")] = "",
    parts: Annotated[str, typer.Option(help="Comma-separated parts instead of all.")] = "",
    seeds: Annotated[int, typer.Option(help="Seeds, the same for every method; 3 or more give intervals.")] = 3,
    out: Annotated[Path | None, typer.Option(help="Folder for records and page; default: runs/NAME.")] = None,
    jobs: Jobs = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Answer one question by several problems and by costs at each length: a table by class of task, and rules in plain words.

    Resumable: call it again and only what is missing runs; runs that stand under results/ are taken from there.

    Examples:  `instar suite length --length 16384 --latency 200ms --memory 100MB`
    ·  `instar suite length --length 2048 --no-causal --parts listops,pixels --methods linformer,longformer`
    ·  `instar suite length --swapped --methods gla,local_window`
    """
    from instar.bench import suite as running
    from instar.cli.progress import Line
    from instar.report import suite as report

    question = running.Question(
        length=length, memory=quantity("--memory", memory, BYTES), latency=quantity("--latency", latency, _SECONDS),
        causal=causal, how="swapped" if swapped else "scratch", layers=layers, width=width, heads=heads,
    )  # fmt: skip
    folder = out or Path("runs") / name
    with Line(quiet or as_json) as line:
        found = running.run(
            name, question, folder, methods=_words(methods), only=_words(parts), seeds=seeds, jobs=jobs, listener=line
        )
    said = report.answer(found)
    report.write(said, folder / "page.html")
    if as_json:
        shown = {"tasks": said.tasks, "misled": [asdict(m) for m in said.misled], "verdicts": [asdict(v) for v in said.verdicts]}
        typer.echo(json.dumps({"out": str(folder), **shown}, indent=1))
        return
    from rich.console import Console

    console = Console()
    console.print(report.table(said))
    for text in report.sentences(said):
        console.print(text, markup=False, highlight=False)
    typer.echo(f"\nThe page: {folder / 'page.html'}; of one part alone: instar report {folder}/PART -o part.html")


def quantity(option: str, text: str, units: dict[str, float]) -> float:
    """`500MB` as a number; nothing given is no limit. Raises PlanError."""
    if not text:
        return math.inf
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)", text.strip())
    if not found or found[2] not in units:
        raise PlanError(f"{option} expects a number with one of {', '.join(units)}; received '{text}'.")
    return float(found[1]) * units[found[2]]


def _words(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
