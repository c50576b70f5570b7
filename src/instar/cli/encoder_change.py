"""The commands that say what a store is, end a change, or take it back: `adopt`, `status`, `rollback`, `finish`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from instar.cli import encoder_given as given
from instar.cli.encoder_given import Store, Yes
from instar.errors import PlanError

if TYPE_CHECKING:
    from instar.interfaces import Index


def register(app: typer.Typer) -> None:
    """Add these commands to the application."""
    for command in (adopt, status, rollback, finish):
        app.command()(command)


def adopt(
    store: Store,
    encoder: Annotated[str | None, typer.Option(help="The encoder that made the stored vectors.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Setting name=value of that encoder.")] = None,
    fingerprint: Annotated[
        str | None, typer.Option(help="Instead of an encoder: any text that names it once and for all.")
    ] = None,
    dim: Annotated[int | None, typer.Option(help="Dimension of the stored vectors, with --fingerprint.")] = None,
    name: Annotated[str, typer.Option(help="How people call the encoder.")] = "",
    option: Annotated[
        list[str] | None,
        typer.Option(
            help="name=value of the store: ids=FILE (exact, FAISS, usearch), id_column and vector_column (PostgreSQL, LanceDB), "
            "vector (Qdrant)."
        ),
    ] = None,
) -> None:
    """Say once which encoder made the vectors of a store that exists. Its vectors stay as they are.

    Examples:  `instar encoder adopt exact:store --encoder all-MiniLM-L6-v2`
    ·  `instar encoder adopt docs.faiss --fingerprint openai/text-embedding-3-small --dim 1536 --option ids=ids.txt`
    """
    from instar.doors.opening import pairs
    from instar.interfaces import Generation
    from instar.retrieval.opening import adopt_index

    if encoder is not None:
        if fingerprint is not None or dim is not None:
            raise PlanError(
                "An encoder has a fingerprint and a dimension of its own: give --encoder alone, or --fingerprint and --dim."
            )
        made = given.encoder(encoder, set_)
        stamp = Generation(0, made.fingerprint, made.dim, name or made.name)
    elif fingerprint is None or dim is None:
        raise PlanError("Say which encoder made these vectors: --encoder SOURCE, or --fingerprint TEXT with --dim N.")
    else:
        stamp = Generation(0, fingerprint, dim, name or fingerprint)
    with adopt_index(store, stamp, **pairs(option or [])) as index:
        _table(index)


def status(
    store: Store,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Show the generations of a store, and how many rows stand in each.

    Examples:  `instar encoder status exact:store`  ·  `instar encoder status postgresql://localhost/shop#products --json`
    """
    with given.store(store, readonly=True) as index:
        if as_json:
            counts = index.counts()
            rows = [{**vars(g), "rows": counts.get(g.number, 0)} for g in index.generations()]
            typer.echo(json.dumps({"store": store, "rows": sum(counts.values()), "generations": rows}, indent=1))
        else:
            _table(index)


def rollback(store: Store, yes: Yes = False) -> None:
    """Take the newest generation back: every row is as it was before it.

    Examples:  `instar encoder rollback exact:store`  ·  `instar encoder rollback exact:store --yes`
    """
    with given.store(store) as index:
        newest = index.generations()[-1]
        rows = index.counts().get(newest.number, 0)
        given.sure(f"Drop {rows:,} vectors of generation {newest.number} ({given.printable(newest.name)})?", yes)
        index.rollback()
        _table(index)


def finish(store: Store, yes: Yes = False) -> None:
    """End a change: drop the vectors of older generations. All rows must stand in the newest; this cannot be taken back.

    Examples:  `instar encoder finish exact:store`  ·  `instar encoder finish exact:store --yes`
    """
    with given.store(store) as index:
        names = ", ".join(f"{g.number} ({given.printable(g.name)})" for g in index.generations()[:-1])
        if not names:
            typer.echo("There is nothing to finish: the store holds one generation.")
            return
        given.sure(f"Drop the vectors of generation {names}, without a way back?", yes)
        index.finish()
        _table(index)


def _table(index: Index) -> None:
    counts = index.counts()
    total = sum(counts.values())
    for g in index.generations():
        rows = counts.get(g.number, 0)
        share = f"{rows / total:6.1%}" if total else ""
        made = f"{g.encoder[:12]:<12}  {given.printable(g.name)}"
        typer.echo(f"generation {g.number}  {rows:>12,} rows {share}  dimension {g.dim:<5} {made}")
