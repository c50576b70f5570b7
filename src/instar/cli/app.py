"""The commands, put together."""

from __future__ import annotations

from typing import Annotated

import typer

import instar
from instar.cli import (
    adapt,
    browse,
    catalogue,
    compress,
    costs,
    doctor,
    edit,
    encoder,
    export,
    finance,
    gate,
    grow,
    history,
    judge,
    kernels,
    offload,
    program,
    protocol,
    suite,
    undo,
)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Take a transformer to its next version without breaking what worked, and with evidence.",
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"instar {instar.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Take a transformer to its next version without breaking what worked, and with evidence."""


browse.register(app)
catalogue.register(app)
judge.register(app)
costs.register(app)
doctor.register(app)
suite.register(app)
protocol.register(app)
history.register(app)
adapt.register(app)
compress.register(app)
edit.register(app)
offload.register(app)
grow.register(app)
program.register(app)
undo.register(app)
app.add_typer(gate.app, name="gate")
app.add_typer(encoder.app, name="encoder")
app.add_typer(export.app, name="export")
app.add_typer(finance.app, name="finance")
app.add_typer(kernels.app, name="kernels")
