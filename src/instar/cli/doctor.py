"""The command `doctor`: what stands in the way here, and what to do about it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict

import typer

from instar.cli.browse import Json


def register(app: typer.Typer) -> None:
    """Add this command to the application."""
    app.command()(doctor)


def doctor(as_json: Json = False) -> None:
    """Look at torch, threads, memory, kernels, extras and folders here; exit code 1 where something is broken.

    Examples:  `instar doctor`  ·  `instar doctor --json`
    """
    from instar.doctor import examine

    found = examine()
    counts = Counter(finding.level for finding in found)
    if as_json:
        typer.echo(json.dumps({"ok": not counts["error"], "findings": [asdict(finding) for finding in found]}, indent=1))
    else:
        for finding in found:
            sign = {"ok": "ok  ", "note": "note", "warning": "WARN", "error": "FAIL"}[finding.level]
            typer.echo(f"{sign} {finding.name:<28} {finding.said}")
            if finding.fix:
                typer.echo(f"{'':<34}{finding.fix}")
        typer.echo(f"\n{counts['error']} errors, {counts['warning']} warnings, {counts['note']} notes.")
    raise typer.Exit(1 if counts["error"] else 0)
