"""The tables of a program as files for other tools."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from instar import files
from instar.errors import ShapeError
from instar.lab.programs.program import Branches, Head, Program, Step, Table


def as_json(program: Program) -> dict[str, Any]:
    """Everything that the program is. Tables are lists of rows, since their keys are of several types."""
    return {
        "tokens": list(program.tokens),
        "labels": list(program.labels),
        "length": program.length,
        "causal": program.causal,
        "pooled": program.pooled,
        "unknown": program.unknown,
        "embedding": [[token, *values] for token, values in program.embedding.items()],
        "steps": [_step(step) for step in program.steps],
        "weights": {name: [[value, *row] for value, row in rows.items()] for name, rows in program.weights.items()},
        "per_unit": {name: list(row) for name, row in program.numeric.items()},
    }


def write(program: Program, folder: Path, form: str = "csv") -> list[Path]:
    """`program.json`, or a CSV file for each step, the weights and what a token is read as; each whole or not at all.

    Raises ShapeError for another form, OutputError.
    """
    if form not in ("csv", "json"):
        raise ShapeError(f"Tables are written as csv or json; received {form!r}.")
    files.folder(folder)
    if form == "json":
        files.write_json(folder / "program.json", as_json(program))
        return [folder / "program.json"]
    written = []
    for name, rows in _tables(program).items():
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        files.write(folder / f"{name}.csv", text.getvalue().encode("utf-8", "backslashreplace"))
        written.append(folder / f"{name}.csv")
    return written


def _tables(program: Program) -> dict[str, list[list[Any]]]:
    found: dict[str, list[list[Any]]] = {"weights": [["variable", "value", *program.labels]]}
    for name, rows in program.weights.items():
        found["weights"] += [[name, value, *row] for value, row in rows.items()]
    found["weights"] += [[name, "each", *row] for name, row in program.numeric.items()]
    if program.embedding:
        width = len(next(iter(program.embedding.values())))
        found["tokens"] = [["token", *(f"token_{i}" for i in range(width))]]
        found["tokens"] += [[token, *values] for token, values in program.embedding.items()]
    for step in program.steps:
        plain = _step(step)
        found[step.name] = [plain["columns"], *plain["rows"]]
    return found


def _step(step: Step) -> dict[str, Any]:
    if isinstance(step, Head):
        kind = "count" if step.counts else "nearest"
        rows = [[query, key] for query, key in step.match.items()]
        return {"name": step.name, "kind": kind, "value": step.value, "columns": [step.query, f"wanted {step.key}"], "rows": rows}
    if isinstance(step, Table):
        rows = [[*key, output] for key, output in step.outputs.items()]
        return {
            **{"name": step.name, "kind": "table", "columns": [*step.reads, step.name]},
            **{"rows": [*rows, [*["otherwise"] * len(step.reads), step.default]]},
        }
    columns = [*(f"{name} from" for name in step.reads), step.name]
    return {"name": step.name, "kind": "thresholds", "columns": columns, "rows": _flat(step.branches)}


def _flat(branches: Branches) -> list[list[int]]:
    """A row for each stretch: where it begins on every axis, and what holds there."""
    if isinstance(branches, int):
        return [[branches]]
    return [[start, *row] for start, inner in branches for row in _flat(inner)]
