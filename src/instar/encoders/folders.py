"""Fitted encoders as folders: tables in safetensors, everything else in JSON. Nothing is pickled."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import load, save

from instar import files
from instar.errors import ModelError
from instar.interfaces import Floats

TABLES, FACTS = "model.safetensors", "encoder.json"
_LARGEST_FACTS = 256 * 2**20


def write(folder: Path, kind: str, tables: Mapping[str, Floats], facts: Mapping[str, Any]) -> None:
    """Write a fitted encoder. The facts come last: a folder without them is not whole. Raises OutputError."""
    files.folder(folder)
    files.write(folder / TABLES, save({name: np.ascontiguousarray(table, np.float32) for name, table in tables.items()}))
    files.write_json(folder / FACTS, {"kind": kind, **facts})


def read(folder: Path, kind: str, names: Sequence[str]) -> tuple[dict[str, Floats], dict[str, Any]]:
    """(tables, facts). Raises ModelError for another kind, a damaged file, or a table that is missing or not finite."""
    facts = _facts(folder, kind)
    try:
        found = load((folder / TABLES).read_bytes())
    except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
        raise ModelError(f"{folder / TABLES} cannot be read: {error}. Fit the encoder again.") from error
    for name in names:
        if name not in found:
            raise ModelError(f"{folder / TABLES} lacks the table '{name}'; it has {', '.join(sorted(found)) or 'none'}.")
        if found[name].dtype.kind != "f" or not np.isfinite(found[name]).all():
            raise ModelError(f"{folder / TABLES}: the table '{name}' holds other values than finite numbers.")
    return {name: found[name].astype(np.float32) for name in names}, facts


def _facts(folder: Path, kind: str) -> dict[str, Any]:
    path = folder / FACTS
    try:
        if path.stat().st_size > _LARGEST_FACTS:
            raise ModelError(f"{path} is larger than {_LARGEST_FACTS // 2**20} MiB.")
        facts = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ModelError(f"{folder} holds no fitted encoder: {path.name}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is no JSON: {error}.") from error
    received = facts.get("kind") if isinstance(facts, dict) else type(facts).__name__
    if received != kind:
        raise ModelError(f"{path} describes {received!r}; expected {kind!r}.")
    return facts
