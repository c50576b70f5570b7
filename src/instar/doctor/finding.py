"""What an examination finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One fact about the machine or the installation.

    level: `error`, something does not work; `warning`, it works badly; `note`, good to know; `ok`. fix: a command or a sentence
    that says what to do, empty where there is nothing to do.
    """

    name: str
    level: Literal["ok", "note", "warning", "error"]
    said: str
    fix: str = ""
