"""What may break: budgets for all items and for slices, from a TOML file or from the command line.

max_nfr = 0.02              # of all items, beyond the noise floor (0.02 also where neither this nor max_flips is given)
max_accuracy_drop = 0.01    # optional: of the mean mark
level = 0.95

[[slices]]
column = "domain"           # every value of the column, or the one named
value = "banking"
max_nfr = 0.01

[[slices]]
column = "priority"
value = "must work"
max_flips = 0               # of these very items: counted, no statistics
"""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from instar.errors import PlanError, UnknownNameError
from instar.gate.values import canonical

DEFAULT = 0.02
"""Of `max_nfr`."""
_LIMITS = ("max_nfr", "max_accuracy_drop", "max_flips")


@dataclass(frozen=True)
class Limits:
    """Budgets for some items; None asks nothing."""

    max_nfr: float | None = None
    """Of the share of items that were right and became wrong, beyond the noise floor."""
    max_accuracy_drop: float | None = None
    """Of the mean mark, old minus new."""
    max_flips: int | None = None
    """Of the number of these very items that were right in every run of the old version and became wrong."""

    def __post_init__(self) -> None:
        for name in ("max_nfr", "max_accuracy_drop"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise PlanError(f"{name} is a share from 0 to below 1 (2 % is 0.02); received {value!r}.")
        if self.max_flips is not None and self.max_flips < 0:
            raise PlanError(f"max_flips is a number of items, 0 or more; received {self.max_flips!r}.")


@dataclass(frozen=True)
class SliceLimits(Limits):
    """Budgets for the items whose column has a value, or for every value of the column."""

    column: str = ""
    value: str | None = None


@dataclass(frozen=True)
class Policy(Limits):
    """The whole policy. `max_nfr` is 0.02 where neither it nor `max_flips`, which counts the same items, is given."""

    level: float = 0.95
    """Of all intervals; a bound alone is wrong with probability (1 − level) / 2."""
    tolerance: float = 0.0
    """A mark that falls by no more than this is no flip (scores; marks of right and wrong need none)."""
    slices: tuple[SliceLimits, ...] = field(default=())

    def __post_init__(self) -> None:
        if self.max_nfr is None and self.max_flips is None:
            object.__setattr__(self, "max_nfr", DEFAULT)
        super().__post_init__()
        if not 0.5 <= self.level < 1:
            raise PlanError(f"level lies between 0.5 and 1 (0.95 is usual); received {self.level!r}.")
        if not 0 <= self.tolerance < math.inf:
            raise PlanError(f"tolerance is 0 or more, in units of the metric; received {self.tolerance!r}.")


def read(path: Path, **given: Any) -> Policy:
    """Read a policy. What is `given` (by the command line) takes the place of what is written; None leaves that.

    Unknown keys and wrong types are errors. Raises PlanError, UnknownNameError.
    """
    try:
        table = tomllib.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise PlanError(f"The policy {path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PlanError(f"The policy {path} is no TOML: {error}.") from error
    rows = table.pop("slices", [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise PlanError(f"The policy {path}: slices are written as [[slices]] tables with a column and a limit.")
    known = [f.name for f in fields(Policy) if f.name != "slices"]
    values = _typed(path, table, known) | {name: value for name, value in given.items() if value is not None}
    slices = []
    for row in rows:
        found = _typed(path, row, [f.name for f in fields(SliceLimits)])
        if not found.get("column"):
            raise PlanError(f"The policy {path}: every [[slices]] names a column; received {row}.")
        if not set(found) & set(_LIMITS):
            raise PlanError(f"The policy {path}: the slice {row} sets no limit; limits are {', '.join(_LIMITS)}.")
        slices.append(SliceLimits(**found))
    return Policy(**values, slices=tuple(slices))


def _typed(path: Path, table: dict[str, Any], known: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in table.items():
        if name not in known:
            raise UnknownNameError.among(f"key in the policy {path}", name, known)
        if name == "value":
            found[name] = canonical(value)
        elif name == "column":
            found[name] = str(value)
        elif (
            isinstance(value, bool) or not isinstance(value, (int, float)) or (name == "max_flips" and not isinstance(value, int))
        ):
            kind = "a whole number" if name == "max_flips" else "a number"
            raise PlanError(f"The policy {path}: '{name}' expects {kind}, received {value!r}.")
        else:
            found[name] = value
    return found
