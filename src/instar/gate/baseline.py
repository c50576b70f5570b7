"""Frozen baselines: what a version said, with hashes, so that tomorrow's run is held to the same items and answers.

A folder: `manifest.json`, `predictions.jsonl`, one `again-N.jsonl` for each repeated run, and, where a version is to be run on
them, `cases.jsonl`, `examples.jsonl` and `documents.jsonl`.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from instar import files
from instar.errors import DataError, OutputError
from instar.gate import reading
from instar.gate.predictions import Cases, Predictions
from instar.gate.values import as_json

MANIFEST = "manifest.json"
_FORMAT = "instar-gate-baseline-1"
_PARTS = ("cases.jsonl", "examples.jsonl", "documents.jsonl")


@dataclass(frozen=True)
class Baseline:
    """A frozen version: its predictions, its repeated runs, and what it was asked."""

    old: Predictions
    again: list[Predictions]
    cases: Cases | None
    task: str
    metric: str
    block: str


def recognised(folder: Path) -> bool:
    """Whether a folder is a frozen baseline."""
    return (folder / MANIFEST).is_file()


def vacant(folder: Path) -> None:
    """Raise OutputError unless a baseline may be written here, before any version is run."""
    if folder.exists():
        raise OutputError(f"{folder} exists. A baseline is not overwritten: remove it, or freeze into another folder with --out.")
    files.folder(folder.parent)


def freeze(
    folder: Path,
    old: Predictions,
    again: Sequence[Predictions] = (),
    *,
    cases: Cases | None = None,
    task: str = "auto",
    metric: str = "",
    block: str = "",
) -> Path:
    """Write a baseline, whole or not at all. Raises OutputError when the folder exists."""
    folder = Path(folder)
    vacant(folder)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        reading.write(temporary / "predictions.jsonl", old)
        for number, version in enumerate(again, 1):
            reading.write(temporary / f"again-{number}.jsonl", version)
        if cases is not None:
            _write_cases(temporary, cases)
        manifest = {
            "format": _FORMAT,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            **{"task": task, "metric": metric, "block": block, "items": len(old)},
            "versions": [{"name": v.name, "costs": dict(v.costs), "facts": dict(v.facts)} for v in (old, *again)],
            "files": {path.name: reading.sha256(path) for path in sorted(temporary.iterdir())},
        }
        files.write(temporary / MANIFEST, as_json(manifest, indent=1, default=str) + "\n")
        temporary.chmod(0o755)
        temporary.replace(folder)
    except OSError as error:
        raise OutputError(f"Cannot write the baseline {folder}: {error.strerror}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def load(folder: Path) -> Baseline:
    """Read a baseline; every file is held to its hash. Raises DataError."""
    folder = Path(folder)
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
        if manifest["format"] != _FORMAT:
            raise DataError(f"{folder / MANIFEST} is not of the format {_FORMAT}.")
        named, versions = dict(manifest["files"]), list(manifest["versions"])
        settings = {key: str(manifest[key]) for key in ("task", "metric", "block")}
    except OSError as error:
        raise DataError(f"{folder / MANIFEST} cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{folder / MANIFEST} is no manifest of a frozen baseline ({error}).") from error
    expected = {"predictions.jsonl", *(f"again-{i}.jsonl" for i in range(1, len(versions)))}
    if strange := set(named) - expected - set(_PARTS) or expected - set(named):
        raise DataError(f"{folder / MANIFEST} names other files than a baseline has: {', '.join(sorted(map(str, strange)))}.")
    for name, sha256 in named.items():
        path = folder / name
        if not path.is_file():
            raise DataError(f"The baseline {folder} lacks {name}.")
        if reading.sha256(path) != sha256:
            raise DataError(f"{path} was changed since it was frozen (its SHA-256 differs); freeze the baseline anew.")
    old, *again = (
        _told(reading.predictions(folder / ("predictions.jsonl" if i == 0 else f"again-{i}.jsonl")), entry, folder)
        for i, entry in enumerate(versions)
    )
    return Baseline(old, list(again), _read_cases(folder, named) if "cases.jsonl" in named else None, **settings)


def _told(version: Predictions, entry: dict[str, Any], folder: Path) -> Predictions:
    facts = {**dict(entry.get("facts", {})), "frozen": str(folder), "sha256": version.facts["sha256"]}
    return Predictions(**{**vars(version), "name": str(entry.get("name")), "costs": dict(entry.get("costs", {})), "facts": facts})


def _write_cases(folder: Path, cases: Cases) -> None:
    columns: dict[str, Sequence[Any]] = {"id": cases.ids, "input": cases.inputs}
    if cases.labels is not None:
        columns["label"] = cases.labels
    if cases.choices is not None:
        columns["choices"] = cases.choices
    reading.write_rows(folder / "cases.jsonl", {**columns, **cases.columns})
    for name, pairs, keys in (("examples", cases.examples, ("input", "label")), ("documents", cases.documents, ("id", "text"))):
        if pairs:
            first, second = zip(*pairs, strict=True)
            reading.write_rows(folder / f"{name}.jsonl", dict(zip(keys, (first, second), strict=True)))


def _read_cases(folder: Path, named: dict[str, str]) -> Cases:
    def part(name: str) -> Path | None:
        return folder / name if name in named else None

    return reading.cases(folder / "cases.jsonl", examples=part("examples.jsonl"), documents=part("documents.jsonl"))
