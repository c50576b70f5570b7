"""The command `undo`: the version before the last update of a stored model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add this command to the application."""
    app.command()(undo)


def undo(
    model: Annotated[Path, typer.Argument(help="A model folder with receipts.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write the version before here, and leave MODEL as it is.")
    ] = None,
) -> None:
    """Take back the last recorded update of a stored model, to the bit.

    The version before takes the place of MODEL, whole and at once, or is written to --out. Nothing happens to a model that was
    changed since without a receipt.

    Examples:  `instar undo my-model`  ·  `instar undo my-model -o my-model-before`
    """
    from instar import release

    said = release.undo(model, out=out)
    title = said.title if said.title.isprintable() else said.method
    typer.echo(f"Took back {title} of {said.time}: {len(said.changes)} tensors, {out or model} is at {said.base[:12]} again.")
