"""The pages of the API: one a public module, found in the package's folder, never listed by hand."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import instar
from instar import catalogue
from instar.site import text

_ROOT = Path(instar.__file__).parent
_COMMANDS = {"cli", "site"}
"""Reached by commands, not by import."""


def modules(pages: Iterable[str]) -> dict[str, str]:
    """Public modules by name, each with the first paragraph of its docstring.

    Public is a package or a module that stands beside them, what is behind a card or offers a name of `instar` itself, and
    whatever one of these pages names; the rest is inner work, however readable.
    """
    wanted = _named("\n".join(pages)) | set(instar._PUBLIC.values())
    entries = [card.entry for card in catalogue.methods().values()] + [card.entry for card in catalogue.problems().values()]
    wanted |= {str(entry).partition(":")[0] for entry in entries}
    found = {}
    for path in sorted(_ROOT.rglob("*.py")):
        parts = path.relative_to(_ROOT.parent).with_suffix("").parts
        package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if package else parts)
        inner = _COMMANDS & set(parts) or any(part.startswith("_") for part in name.split("."))
        if not inner and (package or len(parts) == 2 or name in wanted):
            docstring = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
            found[name] = docstring.partition("\n\n")[0]
    return dict(sorted(found.items()))


def _named(page: str) -> set[str]:
    """Names with dots that a page has, and those that it imports from such a name."""
    names = set(re.findall(r"\binstar(?:\.\w+)+", page))
    for module, imported in re.findall(r"\bfrom (instar[\w.]*) import ([\w, ]+)", page):
        names |= {f"{module}.{name.strip()}" for name in imported.split(",")}
    return names


def pages(found: dict[str, str]) -> Iterator[tuple[str, str]]:
    """(module, page) of each; a package's page lists what is in it."""
    for name in found:
        inside = {
            other: line
            for other, line in found.items()
            if other.startswith(f"{name}.") and other.count(".") == name.count(".") + 1
        }
        parts = [f"# {text.code(name)}", f"::: {name}"]
        if inside:
            rows = [[f"[{text.code(other)}]({other}.md)", text.plain(line)] for other, line in inside.items()]
            parts += ["## Modules", text.table(["module", "what"], rows)]
        yield name, "\n\n".join(parts) + "\n"


def index(found: dict[str, str]) -> str:
    """The names of `instar` itself, and its packages."""
    names = [[_public(name), text.plain(found[module].partition("\n")[0])] for name, module in sorted(instar._PUBLIC.items())]
    packages = [[f"[{text.code(name)}]({name}.md)", text.plain(line)] for name, line in found.items() if name.count(".") == 1]
    return "\n\n".join(
        [
            "# API",
            "What `import instar` offers is loaded when it is first used; the rest is imported by module. The interfaces, "
            "without logic, are [the page to read first](instar.interfaces.md).",
            text.table(["name", "from"], names),
            text.table(["module", "what"], packages),
        ]
    )


def _public(name: str) -> str:
    module = instar._PUBLIC[name]
    return f"[{text.code(f'instar.{name}')}]({module}.md#{module}.{name})"
