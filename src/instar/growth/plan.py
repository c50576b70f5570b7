"""What shall become how large: plans, as mappings, as text, and as files."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from instar.errors import PlanError, TransformError
from instar.interfaces import Plan

_TIMES = re.compile(r"(\d+(?:\.\d+)?)x")


def target(name: str, current: int, wanted: int | str) -> int:
    """The size that a plan wants. Raises TransformError for one that is smaller, no whole number, or neither form."""
    text = str(wanted).strip()
    times = _TIMES.fullmatch(text)
    if isinstance(wanted, bool) or not (times or text.isdecimal()):
        raise TransformError(f"A plan gives {name} as a number or a multiple, as in 256 or '2x'; received {wanted!r}.")
    exact = current * Fraction(times[1]) if times else Fraction(int(text))
    if exact.denominator != 1:
        raise TransformError(f"{text} of {name} = {current} is {float(exact):g}, which is no whole number.")
    if exact < current:
        raise TransformError(
            f"{name} is {current}; the plan wants {int(exact)}, which is smaller. To make a model smaller: `shrink`."
        )
    return int(exact)


def sizes(plan: Plan, current: Mapping[str, int], method: str) -> dict[str, int]:
    """The sizes that a plan asks for, of those that a method can change. Raises TransformError, also where nothing would grow."""
    checked(plan)
    if unknown := sorted(set(plan) - set(current)):
        raise TransformError(f"{method} cannot grow {', '.join(unknown)} of this model; it grows {', '.join(sorted(current))}.")
    found = {name: target(name, current[name], wanted) for name, wanted in plan.items()}
    if all(size == current[name] for name, size in found.items()):
        raise TransformError(f"Nothing would grow: the model has {', '.join(f'{n} = {s}' for n, s in found.items())} already.")
    return {**current, **found}


def checked(plan: Any) -> None:
    """Raise TransformError for what is no plan, or an empty one."""
    if not isinstance(plan, Mapping) or not plan or not all(isinstance(name, str) for name in plan):
        raise TransformError(f"A plan maps names of sizes to sizes, as in {{'n': '2x'}}; received {plan!r}.")


def multiple(name: str, wanted: int, of: int, why: str) -> None:
    """Raise TransformError unless `wanted` is a multiple of `of`."""
    if wanted % of:
        raise TransformError(f"{name} = {wanted} does not divide by {of}: {why}.")


def read(path: str | Path) -> dict[str, int | str]:
    """A plan from a TOML or JSON file: a table of names and sizes. Raises PlanError."""
    file = Path(path)
    try:
        text = file.read_text("utf-8")
        found = json.loads(text) if file.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise PlanError(f"{file} holds no plan: {error}.") from error
    return _plain(found, str(file))


def parse(texts: Iterable[str]) -> dict[str, int | str]:
    """A plan from texts such as n=2x. Raises PlanError."""
    found = {}
    for text in texts:
        name, equals, wanted = text.partition("=")
        if not (name and equals and wanted):
            raise PlanError(f"A size is written as in n=2x or hidden=512; received {text!r}.")
        found[name.strip()] = int(wanted) if wanted.strip().isdecimal() else wanted.strip()
    return _plain(found, "The plan")


def _plain(found: Any, what: str) -> dict[str, int | str]:
    if not isinstance(found, dict) or not found or not all(type(size) in (int, str) for size in found.values()):
        raise PlanError(f'{what} expects a table of sizes, as in n = "2x"; received {found!r:.200}.')
    return found
