"""Forecasters in a folder: `forecaster.json` and the safetensors file that it names, both treated as hostile when read.

The tensors are written first, under the name of their own hash, and `forecaster.json` is replaced at once. A forecaster is
rebuilt from the catalogue's class and its arguments, so that a file can name nothing else to run.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as as_bytes

from instar import catalogue, files
from instar.data.panel import Panel
from instar.data.time_grid import Grid
from instar.errors import CheckpointError, InstarError, ShapeError, UnknownNameError
from instar.forecasting import framing
from instar.interfaces import Forecaster
from instar.models import checkpoint

FORMAT, FILE = "instar-forecaster-1", "forecaster.json"
_WEIGHTS = re.compile(r"[0-9a-f]{64}\.safetensors")
_LARGEST = 64 << 20  # bytes of the JSON file: a million names


def save(forecaster: Forecaster, folder: Path) -> None:
    """Write a fitted forecaster, whole or not at all.

    Raises ShapeError before `fit`, UnknownNameError for a class that is no method of the catalogue, OutputError.
    """
    card, kept = catalogue.of(type(forecaster)), forecaster.kept
    if kept is None:
        raise ShapeError("Nothing was fitted yet, so there is nothing to save: call fit(frame) first.")
    if card is None or catalogue.load(card) is not type(forecaster):
        raise UnknownNameError(
            f"{type(forecaster).__name__} is no method of the catalogue, so nobody could load it. Give it a card."
        )
    tensors = {f"state.{name}": value for name, value in forecaster.state_dict().items()}
    tensors |= {"kept.values": torch.from_numpy(kept.values), "kept.covariates": torch.from_numpy(kept.covariates)}
    if forecaster.errors is not None:
        tensors["errors"] = forecaster.errors
    content = as_bytes({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()})
    weights = f"{hashlib.sha256(content).hexdigest()}.safetensors"
    table = {
        "format": FORMAT,
        "method": card.slug,
        "arguments": {name: getattr(forecaster, name) for name in inspect.signature(type(forecaster)).parameters},
        "weights": weights,
        "panel": {"ids": kept.ids, "ends": kept.ends, "names": kept.names, "known": kept.known, "grid": asdict(kept.grid)},
    }
    folder = files.folder(Path(folder))
    before = _weights(folder)
    files.write(folder / weights, content)
    files.write_json(folder / FILE, table)
    if before not in (None, weights):
        with contextlib.suppress(OSError):
            (folder / str(before)).unlink()


def load(folder: Path) -> Forecaster:
    """The forecaster of a folder, in eval mode on the CPU. Raises CheckpointError, UnknownNameError for an unknown method."""
    path = Path(folder) / FILE
    table = _read(path)
    try:
        method, arguments, said = table["method"], table["arguments"], table["panel"]
        grid = Grid(**said["grid"])
        known = {key: tuple(said[key]) for key in ("ids", "ends", "names", "known")}
        weights = str(table["weights"])
        if not isinstance(method, str) or not isinstance(arguments, dict) or not _WEIGHTS.fullmatch(weights):
            raise TypeError("a method, its arguments and the file of its tensors are expected")
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path} describes no forecaster ({error!r}).") from error
    if hashlib.sha256(_bytes(path.with_name(weights))).hexdigest() != weights.partition(".")[0]:
        raise CheckpointError(f"{path.with_name(weights)} is not the file that {FILE} names: its hash is another one.")
    tensors, _ = checkpoint.read(path.with_name(weights))
    cls: Any = catalogue.load(catalogue.method(method))
    if not issubclass(cls, Forecaster):
        raise CheckpointError(f"{path} names {method}, which is no forecaster.")
    try:
        built: Forecaster = cls(**{key: tuple(v) if isinstance(v, list) else v for key, v in arguments.items()})
        values, covariates = (tensors.pop(f"kept.{name}").double().numpy() for name in ("values", "covariates"))
        kept = Panel(values=values, covariates=covariates, grid=grid, **known)
        framing.prepare(built, kept, 0)
    except (InstarError, KeyError, TypeError, ValueError, RuntimeError, OverflowError, MemoryError) as error:
        raise CheckpointError(f"{path} describes no {method}: {error}") from error
    built.kept, built.errors = kept, tensors.pop("errors", None)
    state = {name.removeprefix("state."): value for name, value in tensors.items()}
    checkpoint.compare(path.with_name(weights), state, built.state_dict())
    built.load_state_dict(state)
    return built.eval()


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _LARGEST:
            raise CheckpointError(f"{path} is too large to describe a forecaster.")
        table = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}).") from error
    if not isinstance(table, dict) or table.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not of the format {FORMAT}.")
    return table


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}).") from error


def _weights(folder: Path) -> str | None:
    """The tensors' file that stands there now."""
    try:
        found = str(_read(folder / FILE)["weights"])
    except (CheckpointError, KeyError):
        return None
    return found if _WEIGHTS.fullmatch(found) else None
