"""The command `search`: one query over all generations of a store."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from instar.cli import encoder_given as given
from instar.cli.encoder_given import Head, Merge, OldEncoder, Set, SetOld, Store
from instar.errors import DataError

_WIDTH = 100


def register(app: typer.Typer) -> None:
    """Add this command to the application."""
    app.command()(search)


def search(
    store: Store,
    text: Annotated[str, typer.Argument(help="What is asked.")],
    encoder: Annotated[str, typer.Option(help="The new encoder.")],
    set_: Set = None,
    head: Head = None,
    old: OldEncoder = None,
    set_old: SetOld = None,
    k: Annotated[int, typer.Option("-k", help="How many rows.")] = 10,
    fusion: Merge = "calibrated",
    data: Annotated[str | None, typer.Option(help="Texts of the rows (`id`, `text`), to show them.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Search all rows, old and new, with one query. The old ones are asked through the head, or by the old encoder.

    Examples:  `instar encoder search exact:store "how do I cancel" --encoder all-MiniLM-L6-v2 --head head`
    ·  `instar encoder search docs.faiss "how do I cancel" --encoder st:new --old st:old -k 5 --fusion rank --data texts.jsonl`
    """
    from instar.data.collecting import open_collection

    if not text.strip():
        raise DataError("The query is empty.")
    across = given.bridge(encoder, set_, head, old, set_old)
    read = None if data is None else open_collection(data)
    known = {} if read is None or read.texts is None else dict(zip(read.ids, read.texts, strict=True))
    with given.store(store, readonly=True) as index:
        hits = index.search(across.queries([text], index), k, across.fusion(fusion, index))
    rows = [
        {"id": name, "score": round(float(score), 6), "generation": int(generation), "text": known.get(str(name))}
        for name, score, generation in zip(hits.ids[0], hits.scores[0], hits.generations[0], strict=True)
        if name is not None
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    for row in rows:
        said = " ".join(str(row["text"] or "").split())
        said = said if len(said) <= _WIDTH else said[: _WIDTH - 1] + "…"
        typer.echo(given.printable(f"{row['score']:7.4f}  generation {row['generation']}  {row['id']}  {said}".rstrip()))
