"""Ranks of an adapter: one for all layers, and others for some."""

from __future__ import annotations

import re
from collections.abc import Mapping

from instar.errors import ShapeError


def require(r: int, pattern: Mapping[str, int] | None, dropout: float, lr: float) -> None:
    """Raise ShapeError for settings that no adapter of a rank can have."""
    ranks = {"r": r, **(pattern or {})}
    for name, value in ranks.items():
        if type(value) is not int or value < 1:
            raise ShapeError(f"A rank expects a whole number of 1 or more; received {name}={value!r}.")
    for name in pattern or {}:
        try:
            re.compile(name)
        except re.error as error:
            raise ShapeError(f"rank_pattern expects names or regular expressions; {name!r} is neither: {error}.") from error
    if not 0 <= dropout < 1 or not 0 < lr < float("inf"):
        raise ShapeError(f"dropout expects [0, 1) and lr more than 0; received {dropout} and {lr}.")


def rank(r: int, pattern: Mapping[str, int] | None, name: str) -> int:
    """The rank of a layer: that of the first pattern which its path ends with, else `r`."""
    return next((value for key, value in (pattern or {}).items() if re.fullmatch(rf"(.*\.)?({key})", name)), r)
