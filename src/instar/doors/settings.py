"""The settings of every door: a dataclass whose fields say what each means, how it is read, and what it is by default.

A value is given as text (`--new batch=1`) or from Python, and reads the same for every door: whole numbers and numbers in
bounds, `true` or `false`, `none` where nothing may be chosen, `@file.txt` for a text that lies in a file, and for several texts
a list or its JSON (`stop=["\\n", "END"]`). Whatever does not fit is a ShapeError before anything runs.

>>> from dataclasses import dataclass
>>> @dataclass(frozen=True)
... class Mine:
...     batch: int = setting(16, whole(1), "items at a time")
>>> read(Mine, {"batch": "4"})
Mine(batch=4)
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from instar.errors import ShapeError

Reader = Callable[[Any], Any]
"""Makes a value of what was given, or raises ValueError that says what it expects."""
Kind = TypeVar("Kind")

_LARGEST_FILE = 2**20


def setting(default: Any, read: Reader, means: str) -> Any:
    """A field of a dataclass of settings."""
    return dataclasses.field(default=default, metadata={"read": read, "means": means})


def meanings(kind: Any, without: Sequence[str] = ()) -> dict[str, str]:
    """Setting -> what it means, for help and for messages; `without` are those that a door does not have."""
    return {f.name: f.metadata["means"] for f in dataclasses.fields(kind) if f.name not in without}


def read(kind: type[Kind], given: Mapping[str, Any]) -> Kind:
    """The settings that were given, and the defaults of the others. Raises ShapeError."""
    readers = {f.name: f.metadata["read"] for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value_of(name, value, readers[name]) for name, value in given.items()})


def value_of(name: str, value: Any, read: Reader) -> Any:
    """One value. Raises ShapeError."""
    try:
        return read(value)
    except ValueError as error:
        raise ShapeError(f"The setting {name} expects {error}; received {repr(value)[:80]}.") from None


def number(low: float = -math.inf, high: float = math.inf) -> Reader:
    """A number in bounds."""

    def reads(value: Any) -> float:
        try:
            found = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            found = math.nan
        if not low <= found <= high:
            raise ValueError("a number" + _bounds(low, high))
        return found

    return reads


def whole(low: float = -math.inf, high: float = math.inf) -> Reader:
    """A whole number in bounds."""

    def reads(value: Any) -> int:
        try:
            found = int(str(value))
        except ValueError:
            found = None
        if found is None or not low <= found <= high:
            raise ValueError("a whole number" + _bounds(low, high))
        return found

    return reads


def _bounds(low: float, high: float) -> str:
    if high < math.inf:
        return f" between {low:g} and {high:g}"
    return f" of at least {low:g}" if low > -math.inf else ""


def truth(value: Any) -> bool:
    """True or false."""
    if str(value).lower() not in ("true", "false"):
        raise ValueError("true or false")
    return str(value).lower() == "true"


def one_of(*names: str, **others: str) -> Reader:
    """One of some names; `others` are further spellings of them. None and False are `none`."""

    def reads(value: Any) -> str:
        found = "none" if value is None or value is False else str(value).lower()
        found = others.get(found, found)
        if found not in names:
            raise ValueError(" or ".join(names))
        return found

    return reads


def optional(read: Reader) -> Reader:
    """None where nothing is chosen: None or `none`."""
    return lambda value: None if value is None or str(value).lower() == "none" else read(value)


def text(value: Any) -> str:
    """A text, or with `@file` what that file says."""
    if not isinstance(value, str):
        raise ValueError("text")
    if not value.startswith("@"):
        return value
    path = Path(value[1:]).expanduser()
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise ValueError("a file of text of at most 1 MiB")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"text, or @ and a file that can be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ValueError("a file of UTF-8 text") from error


def template(value: Any) -> str:
    """A text, or with `@file` what that file says, that has a place for the text of an item."""
    found = text(value)
    if "{input}" not in found:
        raise ValueError("a text with {input}, where the item's text goes")
    return found


def texts(value: Any) -> tuple[str, ...]:
    r"""One text or several: a list, or its JSON. `\n` is a line break."""
    parsed = _parsed(value)
    found = [value] if isinstance(value, str) and not isinstance(parsed, list) else parsed
    if not isinstance(found, (list, tuple)) or not all(isinstance(one, str) and one for one in found):
        raise ValueError("a text or a list of texts, none empty")
    return tuple(one.replace("\\n", "\n") for one in found)


def fields(value: Any) -> dict[str, Any]:
    """A JSON object, or its text."""
    found = _parsed(value)
    if not isinstance(found, dict):
        raise ValueError("a JSON object")
    return found


def _parsed(value: Any) -> Any:
    """What JSON text says, None where it is none; any other value as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return None


def like(example: Any) -> Reader:
    """As the type of `example`, where text has to be told from a number; everything else as it is given."""
    by_type = {bool: truth, int: whole(), float: number()}
    reader = by_type.get(type(example))
    return lambda value: reader(value) if reader is not None and isinstance(value, str) else value
