"""The command `adapt`: an adapter trained on pairs and merged into a stored language model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from instar.cli.command import command
from instar.cli.encoder_given import Quiet

if TYPE_CHECKING:
    from instar.release.adapting import Adapted


def register(app: typer.Typer) -> None:
    """Add this command to the application."""
    app.command()(adapt)


def adapt(
    model: Annotated[str, typer.Argument(help="A model: a packaged name, a folder, or a cached hub id.")],
    data: Annotated[
        str,
        typer.Argument(
            help="JSONL with prompt and target (or e2e) for a language model; "
            "CSV with text and label (or trec, sst2, clinc150) for classes."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the new version; it must not exist.")],
    method: Annotated[str, typer.Option(help="An adapter of `instar list`: lora, hut, dora, hira, ia3, bitfit.")] = "lora",
    where: Annotated[
        list[str] | None,
        typer.Option(help="Names or regular expressions of linear layers; default: the method's (mostly query and value)."),
    ] = None,
    knob: Annotated[list[str] | None, typer.Option(help="name=value of the method.")] = None,
    like: Annotated[
        str | None,
        typer.Option(help="An older version that does this task: what it answers rightly should stay right (language models)."),
    ] = None,
    update: Annotated[str, typer.Option(help="How that is kept: an updater of `instar list`.")] = "muscle:keep=64",
    steps: Annotated[int, typer.Option(help="Of training.")] = 200,
    batch: Annotated[int, typer.Option(help="Items in a step.")] = 8,
    length: Annotated[int, typer.Option(help="Most tokens of an item.")] = 256,
    dtype: Annotated[str, typer.Option(help="Of the base while it is trained; it is written as it was stored.")] = "float32",
    seed: Annotated[int, typer.Option(help="Of the adapter's start and of the order of the items.")] = 0,
    gate: Annotated[bool, typer.Option(help="Judge the new version against the one before.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
    quiet: Quiet = False,
) -> None:
    """Teach a model a task with an adapter, as a new version that plain `transformers` loads.

    MODEL stays as it is. OUT holds the merged weights, the adapter alone (OUT/adapter, in the layout of `peft`), a receipt from
    which `instar undo OUT` restores the old weights to the bit, and the gate's report (OUT/gate/page.html): of a language model
    on text that has nothing to do with the data, of a classifier on held-out sentences (an encoder that had no head answers by
    the nearest class), and with --like of held-out answers of both versions. A tenth of the data is held out and scored before
    and after.

    Exit code: 0, also where the gate fails or is undecided (it says so); 3 for an error.

    Examples:  `instar adapt SmolLM2-135M-Instruct pairs.jsonl -o adapted`
    ·  `instar adapt new-base pairs.jsonl -o next --like adapted-old-base`
    ·  `instar adapt all-MiniLM-L6-v2 intents.csv -o adapted --method hut --knob r=8 --steps 500 --batch 16`
    """
    from instar import catalogue, interfaces
    from instar.cli.encoder_given import Telling
    from instar.cli.making import made
    from instar.doors.opening import pairs
    from instar.release import adapting
    from instar.upgrade.sides import knobs

    adapter = catalogue.make(method, interfaces.Adapter, knobs(pairs(knob or [])))  # type: ignore[type-abstract]
    with Telling(quiet or as_json) as telling:
        step = telling.begin(f"training {method}")
        found = adapting.adapt(
            model,
            data,
            adapter,
            out,
            where=where,
            like=like,
            updater=None if like is None else made(update, interfaces.Updater),
            steps=steps,
            batch=batch,
            length=length,
            dtype=dtype,
            seed=seed,
            gated=gate,
            command=command(),
            monitor=lambda done, _: step(done, steps),
            progress=telling.begin,
        )
    if as_json:
        typer.echo(json.dumps(_plain(found), indent=1))
    elif not quiet:
        _say(found, method)


def _plain(found: Adapted) -> dict[str, Any]:
    from instar.gate.result import as_json

    return {
        "folder": str(found.folder),
        "receipt": found.receipt.json(),
        "items": found.items,
        "trained": found.trained,
        "before": found.before,
        "after": found.after,
        "kept": found.kept,
        "gate": None if found.gate is None else json.loads(as_json(found.gate)),
    }


def _say(found: Adapted, method: str) -> None:
    receipt = found.receipt
    figures = {f"{name} (held out)": (found.before.get(name), value) for name, value in found.after.items()}
    lines = [
        f"{method}: {found.trained:,} numbers trained on {found.items:,} items in {receipt.seconds:.0f} s; merged, "
        f"{len(receipt.changes)} tensors are others ({receipt.nbytes / 2**20:.1f} MiB).",
        *(f"{name}: {old:.4g} before, {new:.4g} after" for name, (old, new) in figures.items()),
        "Other text: " + ", ".join(f"{name} {value:.4g}" for name, value in found.kept.items()),
    ]
    if found.gate is not None:
        lines += [f"Gate: {found.gate.decision}. {found.gate.headline}", f"Page: {found.folder / 'gate' / 'page.html'}"]
    lines.append(f"New version: {found.folder}. Take it back: instar undo {found.folder}")
    typer.echo("\n".join(lines))
