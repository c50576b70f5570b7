"""The command `history`: what was done to a stored model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from instar.receipt import Recorded


def register(app: typer.Typer) -> None:
    """Add this command to the application."""
    app.command()(history)


def history(
    model: Annotated[Path, typer.Argument(help="A model folder: its receipts lie in receipts/.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """List what was done to a stored model, oldest first, and whether the chain of fingerprints holds up to its weights.

    Examples:  `instar history my-model`  ·  `instar history my-model --json`
    """
    from instar.errors import CheckpointError
    from instar.receipt import fingerprint
    from instar.receipt import history as read

    lines = read(model)
    try:
        weights = fingerprint(model)
    except CheckpointError:
        weights = ""
    chain = all(not line.problem for line in lines)
    last = lines[-1].facts.after if lines and lines[-1].facts else ""
    current = bool(weights) and weights == last
    if as_json:
        answer = {"model": str(model), "weights": weights, "current": current, "valid": chain}
        typer.echo(json.dumps({**answer, "receipts": [_row(line) for line in lines]}, indent=1))
        return
    for line in lines:
        typer.echo(_text(line))
    if not lines:
        typer.echo(f"No update of {model} is recorded. receipt.record('{model}') adds one.")
        return
    typer.echo(f"\n{len(lines)} updates; the chain {'holds' if chain else 'is broken'}; {_current(weights, current)}")


def _current(weights: str, current: bool) -> str:
    if not weights:
        return "the folder holds no weights to compare."
    return "the weights are as the last update left them." if current else "the weights are not those that the last update left."


def _row(line: Recorded) -> dict[str, Any]:
    row: dict[str, Any] = {"number": line.number, "path": str(line.path), "problem": line.problem}
    said = line.facts
    if said is None:
        return row
    keys = ("id", "method", "title", "settings", "time", "seconds", "source", "parent", "base", "after")
    tensors = [change.name for change in said.changes]
    told = {key: getattr(said, key) for key in keys}
    return {**row, **told, "bytes": said.nbytes, "structural": said.structural, "tensors": tensors}


def _text(line: Recorded) -> str:
    """One update; texts from the file are shown without control characters."""
    said = line.facts
    if said is None:
        return _plain(f"{line.number:>3}  {line.problem}")
    what = f"{len(said.changes)} tensors, {_size(said.nbytes)}, {said.seconds:.3g} s"
    text = f"{line.number:>3}  {said.time:<25}  {said.method:<18} {what:<34} {said.base[:8]} → {said.after[:8]}"
    return _plain(text + (f"  ! {line.problem}" if line.problem else ""))


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} GiB"
