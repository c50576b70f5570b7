"""The command `compress`: a stored model in a smaller form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from instar.cli.command import command
from instar.cli.encoder_given import Quiet

if TYPE_CHECKING:
    from instar.release.compressing import Compressed


def register(app: typer.Typer) -> None:
    """Add this command to the application."""
    app.command()(compress)


def compress(
    model: Annotated[str, typer.Argument(help="A model: a packaged name, a folder, or a cached hub id.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the new version; it must not exist.")],
    method: Annotated[
        list[str] | None,
        typer.Option(help="A method of `instar list`, with its settings as in blockwise:bits=4,block=32; several are steps."),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Evaluation file for the gate; default: items from text inside Python.")
    ] = None,
    choose: Annotated[
        str | None, typer.Option(help="Labelled items by which axformer and its kind choose; others than those of --data.")
    ] = None,
    gguf: Annotated[bool, typer.Option("--gguf", help="Also write OUT/small/model.gguf for llama.cpp (type llama).")] = False,
    gate: Annotated[bool, typer.Option(help="Judge the compressed model against the one before.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
    quiet: Quiet = False,
) -> None:
    """Make a model smaller, as a new version in two forms.

    MODEL stays as it is. OUT/small is the compressed model: `instar.compression.load`, and every command of `instar` that takes
    a model. OUT itself is what plain `transformers` loads: the same weights as floats, as large as before, with a receipt from
    which `instar undo OUT` restores the old ones to the bit, and the gate's report on the compressed model (OUT/gate/page.html).

    Exit code: 0, also where the gate fails or is undecided (it says so); 3 for an error.

    Examples:  `instar compress all-MiniLM-L6-v2 -o small --method int8`
    ·  `instar compress my-model -o small --method blockwise:bits=4,block=32 --data questions.jsonl`
    ·  `instar compress SmolLM2-135M-Instruct -o small --method gguf_blocks:type=Q8_0 --gguf`
    ·  `instar compress my-classifier -o cut --method axformer:policy=efficiency --choose valid.jsonl --data test.jsonl`
    """
    from instar import interfaces
    from instar.cli.encoder_given import Telling
    from instar.cli.making import made
    from instar.doors import opening
    from instar.release import compressing

    steps = [made(text, interfaces.Transform) for text in method or ["int8"]]
    items, chosen = (None if one is None else opening.cases(one) for one in (data, choose))
    with Telling(quiet or as_json) as telling:
        found = compressing.compress(
            model,
            steps,
            out,
            data=chosen,
            cases=items,
            gguf=gguf,
            gated=gate,
            command=command(),
            progress=telling.begin,
        )
    if as_json:
        typer.echo(json.dumps(_plain(found), indent=1))
    elif not quiet:
        _say(found)


def _plain(found: Compressed) -> dict[str, Any]:
    from instar.gate.result import as_json

    return {
        "folder": str(found.folder),
        "small": str(found.small),
        "gguf": None if found.gguf is None else str(found.gguf),
        "receipt": found.receipt.json(),
        "bytes_before": found.bytes_before,
        "bytes_after": found.bytes_after,
        "kept": found.kept,
        "gate": None if found.gate is None else json.loads(as_json(found.gate)),
    }


def _say(found: Compressed) -> None:
    sizes = [f"{size / 2**20:.1f} MiB" for size in (found.bytes_before, found.bytes_after)]
    lines = [
        f"{found.receipt.title}: {sizes[0]} of weights before, {sizes[1]} after, "
        f"{found.bytes_before / found.bytes_after:.2f} times smaller; {found.receipt.seconds:.1f} s.",
        ", ".join(f"{name} {value:.4f}" for name, value in found.kept.items()) + " (on other text).",
    ]
    if found.gate is not None:
        lines += [f"Gate: {found.gate.decision}. {found.gate.headline}", f"Page: {found.folder / 'gate' / 'page.html'}"]
    lines += [
        f"Compressed model: {found.small}.",
        *([] if found.gguf is None else [f"For llama.cpp: {found.gguf}."]),
        f"The same weights as floats, for plain transformers: {found.folder}. Take it back: instar undo {found.folder}",
    ]
    typer.echo("\n".join(lines))
