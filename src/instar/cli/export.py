"""The commands `export records` and `export problem`: what is here, for other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Records as a table or to trackers, and problems as benchmarks of benchopt.")


@app.command()
def records(
    folders: Annotated[list[Path], typer.Argument(help="Folders of records, as `instar compare` writes them.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The table to write, a .parquet file.")] = None,
    sink: Annotated[
        list[str] | None, typer.Option(help="Also send them: tensorboard:FOLDER, mlflow:URI or trackio:PROJECT.")
    ] = None,
) -> None:
    """Export records: one row for each run or trial, and for each method of a timing pass.

    Examples:  `instar export records runs/text -o runs.parquet`  ·  `instar export records runs/text --sink tensorboard:logs`
    """
    if out is None and not sink:
        raise typer.BadParameter("Say where to: -o records.parquet, --sink tensorboard:FOLDER, or both.")
    from instar.bench.record import load_all

    found = load_all(folders)
    if out is not None:
        from instar.export import parquet

        typer.echo(f"{out}: {parquet.write(found, out)} rows")
    if sink:
        from instar.sinks.sending import Sending

        send = Sending(sink, lambda text: typer.echo(text, err=True))
        for record in found:
            send(record)
        if send.failed:
            raise typer.Exit(1)
        typer.echo(f"{', '.join(sink)}: {len(found)} records")


@app.command()
def problem(
    name: Annotated[str, typer.Argument(help="A problem; see `instar problems`.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="An empty or new folder for the benchmark.")],
    methods: Annotated[str, typer.Option(help="Comma-separated methods or presets; default: all that it accepts.")] = "",
    budget: Annotated[str, typer.Option(help="Training of one run in steps, such as 500steps; default: 200.")] = "",
    seeds: Annotated[int, typer.Option(help="Seeds of the data set.")] = 3,
    set_: Annotated[list[str] | None, typer.Option("--set", help="setting=value of the problem.")] = None,
    data: Annotated[list[str] | None, typer.Option(help="Your own files, or the name of a known data set.")] = None,
) -> None:
    """Write a problem and its methods as a benchmark of benchopt: a folder of short wrappers.

    Examples:  `instar export problem recall -o benchmark_recall --methods gla,gru --budget 300steps`
    """
    from instar.cli.judge import settings
    from instar.errors import ShapeError
    from instar.export import benchopt

    own, others = settings(set_ or [])
    if others:
        raise ShapeError(f"--set expects a setting of the problem here; received one of {', '.join(others)}.")
    if data:
        own["data"] = data[0] if len(data) == 1 else data
    chosen = [m.strip() for m in methods.split(",") if m.strip()]
    written = benchopt.write(name, out, methods=chosen, settings=own, budget=budget, seeds=seeds)
    typer.echo(f"{out}: {len(written)} files. Run it: benchopt run {out}")
