"""`instar encoder report OLD NEW`: what a change of encoder costs and gains, before anything is changed."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from instar.cli import encoder_given as given
from instar.cli.command import command
from instar.cli.encoder_given import Quiet

if TYPE_CHECKING:
    from instar.upgrade.result import Report


def register(app: typer.Typer) -> None:
    """Add this command to the application."""
    app.command()(report)


def report(
    old: Annotated[str, typer.Argument(help="What is stored: an encoder, a file of vectors, or the store itself.")],
    new: Annotated[str, typer.Argument(help="The new encoder, or a file of its vectors.")],
    data: Annotated[
        str | None,
        typer.Option(help="Documents (`id`, `text`, `label` where known), a BEIR folder, or topics, squad, xquad, clinc150."),
    ] = None,
    queries: Annotated[Path | None, typer.Option(help="Queries with known answers (`id`, `text`, `relevant`).")] = None,
    qrels: Annotated[
        Path | None, typer.Option(help="Which documents are relevant, as a table, where --queries do not say.")
    ] = None,
    old_queries: Annotated[
        Path | None, typer.Option(help="Vectors of the queries under OLD, where OLD is a file or store.")
    ] = None,
    new_queries: Annotated[Path | None, typer.Option(help="Vectors of the queries under NEW, where NEW is a file.")] = None,
    set_old: Annotated[
        list[str] | None, typer.Option("--old", help="Setting name=value of OLD; of vectors: encoder=SOURCE, what made them.")
    ] = None,
    set_new: Annotated[
        list[str] | None, typer.Option("--new", help="Setting name=value of NEW; of vectors: encoder=SOURCE.")
    ] = None,
    k: Annotated[int, typer.Option(help="Recall at k.")] = 10,
    rows: Annotated[int | None, typer.Option(help="Rows of the index; default: the documents of the data.")] = None,
    sample: Annotated[int, typer.Option(help="Most documents to encode and measure on.", min=1)] = 20_000,
    hours: Annotated[float | None, typer.Option(help="Hours that may be spent on encoding.")] = None,
    rate: Annotated[float | None, typer.Option(help="Texts a second that NEW encodes, where that is not measured here.")] = None,
    arms: Annotated[str, typer.Option(help="Only these ways to search, comma-separated, such as no_map,ridge,bt2.")] = "",
    without: Annotated[str, typer.Option(help="All but these.")] = "",
    steps: Annotated[int | None, typer.Option(help="Of training, for heads that are trained.")] = None,
    seed: Annotated[int, typer.Option(help="Of the draw, the split and training.")] = 0,
    cache: Annotated[bool, typer.Option(help="Keep vectors, so that the next report need not encode again.")] = True,
    html: Annotated[Path | None, typer.Option(help="Write the page.")] = None,
    md: Annotated[Path | None, typer.Option(help="Write Markdown for an issue or a pull request.")] = None,
    json_: Annotated[Path | None, typer.Option("--json", help="Write the record; - for standard output.")] = None,
    quiet: Quiet = False,
) -> None:
    """Say what replacing the encoder OLD by NEW gains and costs: with a map, with part of the rows re-encoded, with all of them.

    Predicted recall and its interval for every way to search, what each costs, what to do, and a check of the predictions on
    queries that were held out. Nothing is changed. Without --data it measures on documentation that ships inside Python.

    Exit code: 0, or 3 for an error.

    Examples:  `instar encoder report lsa all-MiniLM-L6-v2 --html page.html`
    ·  `instar encoder report all-MiniLM-L6-v2 st:my-fine-tune --data docs.jsonl --queries queries.jsonl --rows 5000000`
    ·  `instar encoder report old.npz new.npz --rate 120 --rows 2000000`
    ·  `instar encoder report exact:store all-MiniLM-L6-v2 --data docs.jsonl --hours 8`
    """
    from instar import files
    from instar.cli import encoder_sides as loading
    from instar.doors.opening import pairs
    from instar.upgrade import report as measuring

    for path in (html, md, json_):
        if path is not None and str(path) != "-":
            files.target(path)
    with given.Telling(quiet or str(json_) == "-") as telling:
        found = loading.gather(
            loading.Named("old", old, pairs(set_old or []), old_queries),
            loading.Named("new", new, pairs(set_new or []), new_queries),
            data=data, queries=queries, qrels=qrels, sample=sample, seed=seed, cache=cache, telling=telling,
        )  # fmt: skip
        made = measuring.report(
            found.collection, found.old, found.new,
            k=k, chosen=_names(arms), without=_names(without) or (), rows=found.rows if rows is None else rows,
            hours=hours, rate=rate, steps=steps, seed=seed, seconds_encoding=found.seconds,
            progress=_Stages(telling), command=command(),
        )  # fmt: skip
    try:
        _write(made, html, md, json_, quiet)
    except BrokenPipeError:  # `instar encoder report … | head`: the reader is gone, the answer is not
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - the interpreter flushes it at its end


class _Stages:
    """A line of progress for every stage of the measurement."""

    def __init__(self, telling: given.Telling) -> None:
        self._telling = telling
        self._told: dict[str, Any] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        name = stage.partition(" ")[0] if stage.startswith("fitting ") else stage
        if name not in self._told:
            self._told[name] = self._telling.begin(name)
        self._told[name](done, total)


def _names(given_: str) -> list[str] | None:
    return [name.strip() for name in given_.split(",") if name.strip()] or None


def _write(made: Report, html: Path | None, md: Path | None, json_: Path | None, quiet: bool) -> None:
    try:
        _keep(made, html, md, json_)
    finally:  # what hours have measured is said also where the disk is full
        if str(json_) == "-":
            from instar.upgrade.result import as_json

            typer.echo(as_json(made), nl=False)
        elif not quiet:
            from rich.console import Console

            from instar.upgrade import terminal

            terminal.show(made, Console(highlight=False, width=None if sys.stdout.isatty() else terminal.WIDTH))


def _keep(made: Report, html: Path | None, md: Path | None, json_: Path | None) -> None:
    from instar import files
    from instar.upgrade.result import as_json

    if json_ is not None and str(json_) != "-":
        files.write(json_, as_json(made))
    if html is not None:
        from instar.upgrade import page

        files.write(html, page.render(made))
    if md is not None:
        from instar.upgrade import markdown

        files.write(md, markdown.render(made))
