"""Reads the settings of a version, which come as text from the command line and as values from Python."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from instar.errors import DataError, ShapeError

_LARGEST_FILE = 2**20


def number(settings: Mapping[str, Any], name: str, default: float, low: float, high: float = math.inf) -> float:
    """A number between `low` and `high`. Raises ShapeError."""
    value = settings.get(name, default)
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not low <= found <= high:
        limits = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
        raise ShapeError(f"{name}={str(value)[:40]}: it must be a number, {limits}.")
    return found


def whole(settings: Mapping[str, Any], name: str, default: int, low: int, high: float = math.inf) -> int:
    """A whole number between `low` and `high`. Raises ShapeError."""
    found = number(settings, name, default, low, high)
    if found != int(found):
        raise ShapeError(f"{name}={found:g}: it must be a whole number.")
    return int(found)


def text(settings: Mapping[str, Any], name: str, default: str = "") -> str:
    """A text, or with `@file` what the file says. Raises DataError when the file cannot be read, ShapeError for no text."""
    value = settings.get(name, default)
    if not isinstance(value, str):
        raise ShapeError(f"{name} must be text, not {type(value).__name__}.")
    if not value.startswith("@"):
        return value
    path = Path(value[1:])
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise DataError(f"{name}: {path} is larger than 1 MiB; that is no template.")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{name}: cannot read {path} ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: {path} is not UTF-8 text.") from error


def structure(settings: Mapping[str, Any], name: str) -> Any:
    """A JSON value, given as one or as its text; None when it is not set. Raises ShapeError."""
    value = settings.get(name)
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ShapeError(f"{name}={value[:40]}: it must be JSON.") from error
