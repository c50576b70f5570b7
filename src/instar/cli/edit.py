"""The command `edit`: facts into a stored language model."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from instar.cli.command import command
from instar.cli.encoder_given import Quiet
from instar.errors import DataError, PlanError

if TYPE_CHECKING:
    from instar.interfaces import Editor
    from instar.release.edits import Edited


def register(app: typer.Typer) -> None:
    """Add this command to the application."""
    app.command()(edit)


def edit(
    model: Annotated[str, typer.Argument(help="A causal language model: a packaged name, a folder, or a cached hub id.")],
    facts: Annotated[
        Path, typer.Argument(help="JSONL with prompt, subject and target; where known also old, paraphrases, neighbours.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the new version; it must not exist.")],
    method: Annotated[str, typer.Option(help="An editor of `instar list`: memit, pmet, rome, ft, ft_l.")] = "memit",
    layers: Annotated[str, typer.Option(help="auto, traced (by causal tracing), or numbers as in 4,5,6.")] = "auto",
    knob: Annotated[list[str] | None, typer.Option(help="name=value of the method.")] = None,
    texts: Annotated[
        Path | None, typer.Option(help="Text file on whose paragraphs drift is measured; default: text inside Python.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Of the weights: auto keeps the stored type; float32, bfloat16.")] = "auto",
    gate: Annotated[bool, typer.Option(help="Judge the new version against the one before.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
    quiet: Quiet = False,
) -> None:
    """Write facts into the weights of a language model, as a new version that plain `transformers` loads.

    MODEL stays as it is. OUT holds the new weights, a receipt from which `instar undo OUT` restores the old ones to the bit, and
    the gate's report against the version before (OUT/gate/page.html). Printed: whether the facts are said now, also in other
    words, and whether neighbours and other text are left alone.

    Exit code: 0, also where the gate fails or is undecided (it says so); 3 for an error.

    Examples:  `instar edit SmolLM2-135M-Instruct facts.jsonl -o edited`
    ·  `instar edit my-model facts.jsonl -o edited --method pmet --layers 4,5,6 --knob steps=30`
    """
    from instar.cli.encoder_given import Telling
    from instar.editing.facts import read
    from instar.release import edits

    wanted = read(facts)
    editor = _editor(method, layers, knob or [])
    paragraphs = None if texts is None else _paragraphs(texts)
    with Telling(quiet or as_json) as telling:
        step = telling.begin(f"searching states for {len(wanted)} facts")
        found = edits.edit(
            model,
            wanted,
            editor,
            out,
            texts=paragraphs,
            dtype=dtype,
            gated=gate,
            command=command(),
            monitor=lambda done, _: step(done, getattr(editor, "steps", None)),
            progress=telling.begin,
        )
    if as_json:
        typer.echo(json.dumps(_plain(found), indent=1))
    elif not quiet:
        _say(found, len(wanted), method)


def _editor(address: str, layers: str, given: list[str]) -> Editor:
    from instar import catalogue, interfaces
    from instar.doors.opening import pairs
    from instar.upgrade.sides import knobs

    arguments = knobs(pairs(given))
    if layers in ("auto", "traced"):
        arguments["layers"] = layers
    else:
        try:
            arguments["layers"] = [int(part) for part in layers.split(",")]
        except ValueError:
            raise PlanError(f"--layers expects auto, traced, or numbers as in 4,5,6; received {layers!r}.") from None
    return catalogue.make(address, interfaces.Editor, arguments)  # type: ignore[type-abstract]


def _paragraphs(path: Path) -> list[str]:
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as text: {error}.") from error
    return [part for part in text.split("\n\n") if part.strip()]


def _plain(found: Edited) -> dict[str, Any]:
    from instar.gate.result import as_json

    return {
        "folder": str(found.folder),
        "receipt": found.receipt.json(),
        "before": found.before,
        "after": found.after,
        "gate": None if found.gate is None else json.loads(as_json(found.gate)),
    }


def _say(found: Edited, facts: int, method: str) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    said = asdict(found.receipt)
    console.print(
        f"{facts} facts by {method} in layers {said['settings'].get('edited_layers')}: {len(found.receipt.changes)} tensors, "
        f"{found.receipt.nbytes / 2**20:.1f} MiB, {found.receipt.seconds:.1f} s",
        markup=False,
    )
    table = Table("", "before", "after", box=None)
    for name in dict.fromkeys([*found.before, *found.after]):
        digits = {"perplexity": ".2f", "fluency": ".0f", "drift": ".4f"}.get(name, ".3f")
        title = {"perplexity": "perplexity of other text", "drift": "drift (KL in nats a token of it)"}.get(name, name)
        table.add_row(title, *(format(side[name], digits) if name in side else "" for side in (found.before, found.after)))
    console.print(table)
    if found.gate is not None:
        console.print(f"Gate: {found.gate.decision}. {found.gate.headline}", markup=False)
        console.print(f"Page: {found.folder / 'gate' / 'page.html'}", markup=False)
    console.print(f"New version: {found.folder}. Take it back: instar undo {found.folder}", markup=False)
