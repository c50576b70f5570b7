"""Docstrings as Markdown. Ours are written for `help()`: prose and formulas in plain signs, arguments as an indented list."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import griffe

from instar.site import text


class Docstrings(griffe.Extension):
    """Rewrites every docstring that mkdocstrings is about to show."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)


def markdown(docstring: str) -> str:
    """Paragraphs as they are, `Args:` and the like with a list, other indented lines as code."""
    return "\n\n".join(_blocks(docstring.expandtabs().splitlines()))


def _blocks(lines: list[str]) -> Iterator[str]:
    at = 0
    while at < len(lines):
        if not lines[at].strip():
            at += 1
            continue
        end = at + 1
        indented = lines[at].startswith("  ")
        while end < len(lines) and lines[end].strip() and lines[end].startswith("  ") == indented:
            end += 1
        part = lines[at:end]
        if indented:
            yield _indented(part, at > 0 and lines[at - 1].rstrip().endswith("Args:"))
        else:
            yield "**Arguments**" if part == ["Args:"] else _prose(part)
        at = end


def _prose(lines: list[str]) -> str:
    """Lines that end a sentence end a line here too: shapes, errors, complexity and source are written one a line."""
    return "<br>".join(text.plain(sentence) for sentence in re.split(r"(?<=\.)\n", "\n".join(lines)))


def _indented(lines: list[str], listed: bool) -> str:
    depth = min(len(line) - len(line.lstrip()) for line in lines)
    inner = "\n".join(line[depth:] for line in lines)
    if not listed:
        return text.block(inner)
    return "\n".join(f"- {text.plain(item)}" for item in re.split(r"\n(?!\s)", inner))
