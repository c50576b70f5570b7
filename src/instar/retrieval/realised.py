"""The log of a backfill: one JSON object a line, appended; what was torn by a kill is passed over."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from instar.errors import OutputError


class Log:
    """How far a change has come and what recall it had there.

    Args:
        path: the file; None keeps nothing. encoder: fingerprint of the new generation, so that several changes can share a file.
    """

    def __init__(self, path: Path | None, encoder: str) -> None:
        self.path, self.encoder = path, encoder

    def add(self, **row: Any) -> None:
        """Append a line. Raises OutputError."""
        if self.path is None:
            return
        line = json.dumps({**row, "encoder": self.encoder}, allow_nan=False)
        try:
            with self.path.open("a+b") as file:
                # After a torn line the next one starts afresh.
                end = file.seek(0, os.SEEK_END)
                torn = end > 0 and (file.seek(end - 1), file.read(1))[1] != b"\n"
                file.write((b"\n" if torn else b"") + line.encode() + b"\n")
        except OSError as error:
            raise OutputError(f"Cannot write the log {self.path}: {error.strerror}. Choose another with --log.") from error

    def rows(self) -> list[dict[str, Any]]:
        """What was logged of this change, in order. Raises OutputError."""
        if self.path is None or not self.path.exists():
            return []
        found = []
        try:
            lines = self.path.read_bytes().splitlines()
        except OSError as error:
            raise OutputError(f"Cannot read the log {self.path}: {error.strerror}. Choose another with --log.") from error
        for line in lines:
            with contextlib.suppress(ValueError):
                row = json.loads(line)
                if isinstance(row, dict) and row.get("encoder") == self.encoder:
                    found.append(row)
        return found

    def first_recall(self) -> float | None:
        """The first recall that was measured in this change."""
        return next((float(row["recall"]) for row in self.rows() if isinstance(row.get("recall"), float | int)), None)
