"""Python, the packages that Instar needs, and the extras."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import sys
from collections.abc import Iterator

from instar.doctor.finding import Finding

_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?\s*(?:\(?>=\s*([0-9][0-9.]*))?")
_EXTRA = re.compile(r"extra\s*==\s*['\"]([^'\"]+)['\"]")
_LEAST_PYTHON = (3, 11)


def core() -> Iterator[Finding]:
    """Whether Python and every required package are there and new enough."""
    version = platform.python_version()
    if sys.version_info < _LEAST_PYTHON:
        yield Finding("python", "error", f"Python {version} is too old.", "Install Python 3.11 or newer and Instar into it.")
    else:
        yield Finding("python", "ok", f"Python {version}, {platform.machine()}, {platform.system()}.")
    needed = _needed()
    if not needed:
        said = "The package instar is not installed here, so that its requirements are not known."
        yield Finding("packages", "warning", said, "pip install instar, or in a checkout: pip install -e .")
        return
    missing = [lack for extra, name, least in needed if extra is None and (lack := _lack(name, least))]
    if missing:
        yield Finding("packages", "error", f"Missing or too old: {'; '.join(missing)}.", "pip install --upgrade instar")
    else:
        yield Finding("packages", "ok", "Every required package is there.")


def extras() -> Iterator[Finding]:
    """Which extras are complete, and how to get the others. None is an error: each is asked for when it is used."""
    found: dict[str, list[str]] = {}
    for extra, name, least in _needed():
        if extra is not None and extra != "dev":
            lacks = found.setdefault(extra, [])
            lacks += [lack for lack in [_lack(name, least)] if lack]
    for extra, lacks in sorted(found.items()):
        if lacks:
            said = f"The extra {extra} is not complete: {'; '.join(lacks)}."
            yield Finding(f"extra {extra}", "note", said, f"pip install 'instar[{extra}]'")
        else:
            yield Finding(f"extra {extra}", "ok", f"The extra {extra} is complete.")


def _needed() -> list[tuple[str | None, str, str]]:
    """(extra, package, least version) of every requirement of the installed distribution."""
    try:
        lines = importlib.metadata.requires("instar") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    found = []
    for line in lines:
        requirement, _, marker = line.partition(";")
        match, extra = _REQUIREMENT.match(requirement.strip()), _EXTRA.search(marker)
        if match:
            found.append((extra[1] if extra else None, match[1], match[2] or "0"))
    return found


def _lack(name: str, least: str) -> str:
    """What is wrong with a package; empty where nothing is."""
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return f"{name} is not installed"
    return f"{name} {version} is older than {least}" if _numbers(version) < _numbers(least) else ""


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version without zeros at the end, which say nothing: 2.13.0+cpu is (2, 13)."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    numbers = [int(part) for part in match[0].split(".")] if match else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
