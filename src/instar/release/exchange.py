"""Putting one folder in the place of another at once."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

from instar.errors import OutputError

_HERE = -100
_EXCHANGE = 2


def exchange(new: Path, old: Path) -> None:
    """Swap two folders of one file system. On Linux whoever looks sees one or the other; elsewhere there is a moment without.

    Raises OutputError; both then stand as before.
    """
    if sys.platform == "linux" and _at_once(new, old):
        return
    aside = old.with_name(f".{old.name}.aside")
    try:
        old.rename(aside)
        try:
            new.rename(old)
        except OSError:
            aside.rename(old)
            raise
        aside.rename(new)
    except OSError as error:
        raise OutputError(f"Cannot put {new} in the place of {old}: {error.strerror}.") from error


def _at_once(new: Path, old: Path) -> bool:
    """renameat2(2) with RENAME_EXCHANGE; False where the system or the file system does not have it."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    return call is not None and call(_HERE, os.fsencode(new), _HERE, os.fsencode(old), _EXCHANGE) == 0
