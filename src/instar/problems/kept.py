"""Numbers that took long to make: kept in the user's cache by what made them, and held to the hash of what was written."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from numpy.typing import NDArray
from safetensors.numpy import save

from instar import files
from instar.data import datasets
from instar.errors import OutputError

Arrays = Mapping[str, NDArray[Any]]


def kept(recipe: Sequence[Any], make: Callable[[], Arrays]) -> Arrays:
    """What `make` gave the first time that it was called for this recipe (plain data that decides its result).

    A file that is not what was written is made anew; a cache that cannot be written costs nothing but the time.
    """
    name = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
    path = datasets.cache() / "problems" / f"{name}.safetensors"
    found = _read(path)
    if found is None:
        found = {key: np.ascontiguousarray(value) for key, value in make().items()}
        with contextlib.suppress(OutputError):
            files.folder(path.parent)
            files.write(path, save(dict(found), {"sha256": digest(found[key] for key in sorted(found))}))
    return found


def digest(parts: Iterable[str | NDArray[Any]]) -> str:
    """SHA-256 over texts and arrays, where each begins and ends included."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode(errors="surrogatepass") if isinstance(part, str) else np.ascontiguousarray(part).tobytes()
        total.update(hashlib.sha256(data).digest())
    return total.hexdigest()


def _read(path: Path) -> Arrays | None:
    """What was written, or None where there is nothing, or another thing."""
    if not path.is_file():
        return None
    try:
        with safetensors.safe_open(path, "np") as stream:
            facts = stream.metadata() or {}
            found = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118 - it is no mapping
    except (OSError, ValueError, safetensors.SafetensorError):
        return None
    return found if facts.get("sha256") == digest(found[key] for key in sorted(found)) else None
