"""`instar encoder`: change the encoder of an index without re-indexing it."""

from __future__ import annotations

import typer

from instar.cli import encoder_backfill, encoder_change, encoder_head, encoder_report, encoder_search

app = typer.Typer(
    rich_markup_mode="markdown",
    no_args_is_help=True,
    help="Change the encoder of a vector index: what it costs, what can be mapped, and a safe backfill.",
)
encoder_report.register(app)
encoder_head.register(app)
encoder_search.register(app)
encoder_backfill.register(app)
encoder_change.register(app)
