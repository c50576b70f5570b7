"""The two files of a saved head, read as they were written by one `save` and by no other."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import torch

from instar.errors import CheckpointError

HEAD, FORMAT = "head.json", "instar-head-1"
DTYPES = {"float32": torch.float32, "float64": torch.float64}
_KEYS = {"format": str, "heads": list, "weights": str, "dtype": str, "generations": list, "calibration": object, "facts": dict}
_WEIGHTS = re.compile(r"[0-9a-f]{64}\.safetensors")
_LONGEST = 64
"""Updates in a chain of heads."""


def read(folder: Path) -> tuple[dict[str, Any], bytes]:
    """`head.json` and the bytes of the weights that it names, as they were written. Raises CheckpointError."""
    table = _table(folder / HEAD)
    while True:
        path = folder / table["weights"]
        try:
            content = path.read_bytes()
            break
        except FileNotFoundError as error:
            # Another process may have put a new head there, and taken these weights away, since the JSON was read.
            before, table = table, _table(folder / HEAD)
            if table["weights"] == before["weights"]:
                raise CheckpointError(f"{path} is gone; the head is not whole.") from error
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror}).") from error
    if (found := hashlib.sha256(content).hexdigest()) != path.name[:64]:
        raise CheckpointError(f"{path} was altered or truncated: its hash is {found[:12]}…. Save the head again.")
    return table, content


def weights(folder: Path) -> str | None:
    """The name of the weights of the head that stands in a folder; None where there is no whole `head.json`."""
    try:
        return str(_table(folder / HEAD)["weights"])
    except CheckpointError:
        return None


def _table(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"There is no head at {path}.")
    try:
        table = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no JSON: {error}") from error
    if not isinstance(table, dict) or table.get("format") != FORMAT or table.keys() != _KEYS.keys():
        raise CheckpointError(f"{path} is no head of the format {FORMAT}.")
    if wrong := [key for key, kind in _KEYS.items() if not isinstance(table[key], kind)]:
        raise CheckpointError(f"{path}: '{wrong[0]}' does not hold what it should.")
    if not _WEIGHTS.fullmatch(table["weights"]):
        raise CheckpointError(f"{path}: 'weights' does not hold what it should, the hash of a file beside it.")
    if not 1 <= len(table["heads"]) <= _LONGEST or table["dtype"] not in DTYPES:
        raise CheckpointError(f"{path} expects 1 to {_LONGEST} heads in {' or '.join(DTYPES)}.")
    return table
