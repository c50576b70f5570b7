"""Writing that is all or nothing: a reader sees the old file or the new one, never half of one."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from instar.errors import OutputError

_NUMBERS = re.compile(r"\[\n\s+(-?\d[^\s\[\]{}\"]*(?:\s+-?\d[^\s\[\]{}\"]*)*)\n\s*\]")


def folder(path: Path) -> Path:
    """Make a folder for output. Raises OutputError when it cannot be made or written to."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as error:
        raise OutputError(f"Cannot write to {path}: {error.strerror}. Choose another folder.") from error


def target(path: Path) -> Path:
    """Find out before the work that a file can be written there, and make its folder. Raises OutputError."""
    folder(path.parent)
    if path.is_dir():
        raise OutputError(f"{path} is a folder; the name of a file is expected.")
    return path


def write(path: Path, content: str | bytes) -> None:
    """Replace `path` by `content`, durably and at once. Raises OutputError (the old file then still stands).

    A device or a pipe (/dev/null, /dev/stdout) is written to, as nothing may take its place.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = ""
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            path.write_bytes(data)
            return
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # noqa: PTH101 - mkstemp makes private files; results are meant to be read
        os.replace(temporary, path)  # noqa: PTH105
    except OSError as error:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise OutputError(f"Cannot write {path}: {error.strerror}. What stood there before is unchanged.") from error


def write_json(path: Path, value: Any) -> None:
    """`write` of a JSON value; NaN is refused, since JSON has none. A list of numbers stands in one line."""
    text = json.dumps(value, indent=1, allow_nan=False)
    # Texts hold no line breaks of their own in JSON, so that nothing inside one can look like this.
    write(path, _NUMBERS.sub(lambda found: "[" + " ".join(found[1].split()) + "]", text) + "\n")
