"""The command `grow`: a stored decoder made larger."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from instar.cli.encoder_given import Quiet

if TYPE_CHECKING:
    from instar.release.growing import Enlarged


def register(app: typer.Typer) -> None:
    """Add this command to the application."""
    app.command()(grow)


def grow(
    model: Annotated[Path, typer.Argument(help="A folder that TokenFormer or Decoder wrote with save_pretrained.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the larger model; it must not exist.")],
    to: Annotated[list[str] | None, typer.Option(help="A size, as in n=2x, feed=512, hidden=2x, width=128; several.")] = None,
    plan: Annotated[Path | None, typer.Option(help='TOML or JSON file of sizes, as in n = "2x".')] = None,
    method: Annotated[
        str,
        typer.Option(help="Of `instar list --family growth`, with settings: tokenformer:tau=grow; default: one without loss."),
    ] = "",
    seed: Annotated[int, typer.Option(help="Of the weights that are drawn.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
    quiet: Quiet = False,
) -> None:
    """Make a decoder larger, as a new version that answers as before and can learn more.

    MODEL stays as it is. OUT holds the larger model and a receipt from which `instar undo OUT` restores the one before to the
    bit. Printed: by how much the logits changed, which is 0 for a TokenFormer that grows by keys of zero.

    Exit code: 0; 3 for an error, such as a size that is smaller than what there is.

    Examples:  `instar grow my-model -o larger --to n=2x`  ·  `instar grow my-model -o larger --plan plan.toml`
    ·  `instar grow my-decoder -o wider --to width=192 --to hidden=2x --method lemon`
    """
    from instar.cli.encoder_given import Telling
    from instar.cli.making import made
    from instar.errors import PlanError
    from instar.growth import plan as planning
    from instar.interfaces import Growth
    from instar.release import growing

    if (plan is None) == (not to):
        raise PlanError("Say how large: either --plan FILE, or --to n=2x (as often as there are sizes).")
    wanted = planning.read(plan) if plan is not None else planning.parse(to or ())
    with Telling(quiet or as_json) as telling:
        found = growing.grow(
            model, wanted, out, method=made(method, Growth) if method else None, seed=seed, progress=telling.begin
        )
    if as_json:
        said = {**asdict(found), "folder": str(found.folder), "receipt": found.receipt.json()}
        typer.echo(json.dumps(said, indent=1))
    elif not quiet:
        _say(found)


def _say(found: Enlarged) -> None:
    typer.echo(
        f"{found.receipt.title}: {found.parameters_before:,} parameters before, {found.parameters_after:,} after, "
        f"{found.receipt.seconds:.2f} s. Largest change of a logit: {found.apart:.3g}.\n"
        f"The larger model: {found.folder}. Take it back: instar undo {found.folder}"
    )
