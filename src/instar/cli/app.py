"""The commands, put together."""

from __future__ import annotations

from typing import Annotated

import typer

import instar
from instar.cli import adapt, browse, compress, costs, edit, encoder, gate, history, judge, kernels, program, suite, undo

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
judge.register(app)
costs.register(app)
suite.register(app)
history.register(app)
adapt.register(app)
compress.register(app)
edit.register(app)
program.register(app)
undo.register(app)
app.add_typer(gate.app, name="gate")
app.add_typer(encoder.app, name="encoder")
app.add_typer(kernels.app, name="kernels")
