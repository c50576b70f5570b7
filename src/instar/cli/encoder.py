"""`instar encoder`: change the encoder of an index without re-indexing it."""

from __future__ import annotations

import typer

app = typer.Typer(
    rich_markup_mode="markdown",
    no_args_is_help=True,
    help="Change the encoder of a vector index: what it costs, what can be mapped, and a safe backfill.",
)
