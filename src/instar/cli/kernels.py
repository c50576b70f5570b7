"""The commands `kernels` and `kernels build`: the compiled kernels of this machine."""

from __future__ import annotations

import typer

app = typer.Typer(invoke_without_command=True, help="The compiled kernels of this machine: list them, or build them ahead.")


@app.callback()
def kernels(context: typer.Context) -> None:
    """List the compiled kernels: ready, absent or refused, and why.

    Examples:  `instar kernels`  ·  `instar kernels build`
    """
    if context.invoked_subcommand is not None:
        return
    from instar.kernels import native

    state, reason = native.status()
    typer.echo(f"decode_attention  {state}  {reason}")


@app.command()
def build() -> None:
    """Build the kernels for this processor and this torch, try them, and put them in the cache folder.

    Needs g++ 12 or newer (or the compiler that CXX names). What is there is replaced. Without compiled kernels everything works,
    slower.
    """
    from instar.kernels import native

    typer.echo(f"decode_attention  ready  {native.build()}")
