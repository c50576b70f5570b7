"""Commands for browsing: find, catalogue. They import no torch."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Annotated

import typer

from instar.cli.browse import Json


def register(app: typer.Typer) -> None:
    """Add these commands to the application."""
    app.command()(find)
    app.command()(catalogue)


def find(
    need: Annotated[list[str], typer.Argument(help="What you need, in plain words.")],
    most: Annotated[int, typer.Option("--most", min=1, help="At most so many answers.")] = 5,
    as_json: Json = False,
) -> None:
    """Find methods and papers by need, in plain words; exit code 1 when nothing answers outright.

    Examples:  `instar find "stream audio on a small device"`  ·  `instar find edit facts --json`
    """
    from instar.shelf import needing
    from instar.shelf.entries import entries

    asked = " ".join(need)
    every = entries()
    made = needing.table(every)
    if not needing.stems(asked, made):
        raise typer.BadParameter(f"Say what you need in a few words; nothing in {asked!r} says what for.")
    found = needing.find(asked, made, most)
    sure = any(one.sure for one in found)
    if as_json:
        rows = [
            {
                "id": every[one.entry].id,
                "title": every[one.entry].title,
                "line": every[one.entry].line,
                "clock": every[one.entry].clock,
                "arxiv": every[one.entry].arxiv,
                "runs": every[one.entry].runs,
                "methods": [card.slug for card in every[one.entry].methods],
                "score": one.score,
                "sure": one.sure,
            }
            for one in found
        ]
        typer.echo(json.dumps({"need": asked, "answered": sure, "answers": rows}, indent=1))
    elif not sure:
        rest = "The nearest:" if found else "Try other words, or browse: instar list, instar catalogue -o page.html."
        typer.echo(f"Nothing here answers {asked!r} outright. {rest}", err=True)
    for one in found if not as_json else ():
        entry = every[one.entry]
        status = "" if entry.runs else "  [not built]"
        typer.echo(f"{entry.id}{status}\n{textwrap.fill(entry.line, 100, initial_indent='  ', subsequent_indent='  ')}")
        if entry.runs:
            names = " ".join(card.slug for card in entry.methods) or " ".join(card.slug for card in entry.problems)
            typer.echo(f"  instar show {names}" if entry.kind != "survey" else f"  runs: {names}")
    raise typer.Exit(0 if sure else 1)


def catalogue(
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The page to write.")] = None,
    feed: Annotated[Path | None, typer.Option("--feed", help="The Atom feed to write, for feed readers.")] = None,
    results: Annotated[
        Path | None, typer.Option(help="Folder of the records; default: results/ here, or the package's own.")
    ] = None,
) -> None:
    """Write the catalogue of all papers and methods as one offline page, and what is new in it as a feed.

    Examples:  `instar catalogue -o page.html`  ·  `instar catalogue --feed feed.xml`
    """
    if out is None and feed is None:
        raise typer.BadParameter("Say what to write: -o page.html, --feed feed.xml, or both.")
    from instar import files
    from instar.bench.claims import judge_all, results_folder, select
    from instar.shelf import feed as feeding
    from instar.shelf import page

    if results is not None and not results.is_dir():
        raise typer.BadParameter(f"There is no folder {results} with records.")
    folder = results or results_folder()
    judgements = judge_all(select(), folder)
    for path, text in ((out, page.render), (feed, lambda judged: feeding.atom(judged, folder))):
        if path is not None:
            files.folder(path.parent)
            files.write(path, text(judgements))
            typer.echo(str(path))
