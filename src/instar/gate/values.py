"""Values of files (JSON, CSV, Parquet) that mean the same."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instar.gate.predictions import Json

_NUMBER = re.compile(r"[+-]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")
_LONGEST = 400
"""Characters of a text that may spell a number."""


def canonical(value: Json) -> str:
    """The same text for what means the same in JSON and in CSV: 1, 1.0 and "1"; true and "true"; spaces at the ends aside.

    "007" and "1_000" are texts, whole numbers keep every digit, and accents are compared by what they show (Unicode NFC).
    """
    if isinstance(value, str):
        text = value.strip()
        if not text.isascii():
            return unicodedata.normalize("NFC", text)
        if not _spells_number(text):
            return text
        exact = int(text) if text.lstrip("+-").isdigit() else float(text)
        return canonical(exact) if math.isfinite(exact) else text
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        whole = isinstance(value, int) or value.is_integer()
        return str(int(value)) if whole else f"{value:.15g}"
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)


def number(value: Json) -> float | None:
    """The number that a value is, or that a text of a CSV file spells; None for anything else."""
    if isinstance(value, bool) or not (isinstance(value, (int, float)) or (isinstance(value, str) and _spells_number(value))):
        return None
    try:
        return float(value)
    except OverflowError:  # a whole number of hundreds of digits
        return None


def choice(said: Json, choices: Sequence[str]) -> str | None:
    """The answer that is meant by its text, its index (from 0) or its letter (A, B …); None where it is none of them."""
    if isinstance(said, str) and said in choices:
        return said
    place = -1
    if isinstance(said, int) and not isinstance(said, bool):
        place = said
    elif isinstance(said, str) and said.isascii() and said.isdigit() and len(said) < _LONGEST:
        place = int(said)
    elif isinstance(said, str) and len(said) == 1 and said.isascii() and said.isupper():
        place = ord(said) - ord("A")
    return choices[place] if 0 <= place < len(choices) else None


def coded(values: Sequence[Json]) -> tuple[list[Json], NDArray[np.int64]]:
    """The distinct values in order of appearance, and the place of each item's value among them."""
    keys: Sequence[Any] = values
    if not set(map(type, values)) <= {str, int, type(None)}:  # others are equal where they are not the same, or have no hash
        keys = [value if type(value) is str else (type(value), canonical(value)) for value in values]
    first = dict(zip(reversed(keys), reversed(values), strict=True))
    known = {key: code for code, key in enumerate(dict.fromkeys(keys))}
    codes = np.fromiter(map(known.__getitem__, keys), dtype=np.int64, count=len(keys))
    return [first[key] for key in known], codes


def named(values: Sequence[Json]) -> tuple[list[str], NDArray[np.int64]]:
    """Like `coded`, with one name for all values that mean the same; what is not there is called "(empty)"."""
    distinct, codes = coded(values)
    names, places = coded(["(empty)" if value is None else canonical(value) for value in distinct])
    return names, places[codes]


def pairs_of(first: Sequence[Json], second: Sequence[Json]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of each distinct pair of values its first place, and for each item the place of its pair among them."""
    _, a = coded(first)
    distinct, b = coded(second)
    _, firsts, which = np.unique(a * len(distinct) + b, return_index=True, return_inverse=True)
    return firsts.astype(np.int64), which.astype(np.int64)


def as_json(value: Any, **options: Any) -> str:
    """JSON that can be written as UTF-8: half a character, as broken text may hold, is escaped."""
    text = json.dumps(value, ensure_ascii=False, **options)
    return re.sub("[\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)


def _spells_number(text: str) -> bool:
    return len(text) <= _LONGEST and _NUMBER.fullmatch(text.strip()) is not None
