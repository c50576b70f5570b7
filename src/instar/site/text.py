"""Texts of cards in Markdown: whatever they say, it is shown and never obeyed.

A card may come from another package. Its words must not become markup, HTML, a cell of a table or a field of a template, so that
every ASCII sign of punctuation is written as a character reference, which no step of the site's making reads as anything else.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from urllib.parse import quote

_SIGNS = re.compile(r"[!-/:-@\[-`{-~]")
_SPAN = re.compile(r"`([^`]+)`")
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufffe\uffff]")


def plain(text: str) -> str:
    """One line of prose. What stands between backticks is code, as in the cards."""
    parts = _SPAN.split(" ".join(clean(text).split()))
    return "".join(f"<code>{_signs(part)}</code>" if i % 2 else _signs(part) for i, part in enumerate(parts))


def code(text: str) -> str:
    """One line of code."""
    return f"<code>{_signs(' '.join(clean(text).split()))}</code>"


def block(text: str, language: str = "text") -> str:
    """Lines of code, in a fence that none of them closes."""
    lines = clean(text).strip("\n")
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", lines)), default=0))
    return f"{fence}{language}\n{lines}\n{fence}"


def link(text: str, address: str) -> str:
    """A link to a place on the web; only its words where the address is none."""
    if not re.match(r"https?://[^\s/]", address):
        return plain(text)
    return f'<a href="{html.escape(quote(clean(address), safe=":/?#[]@!$&()*+,;=%~"))}" rel="noreferrer">{plain(text)}</a>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose cells are Markdown already; a bar in one is written as a character."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "&#124;") for cell in line) + " |" for line in lines)


def clean(text: str) -> str:
    """Without characters that no page can hold or that turn the direction of what follows; lines end as on Unix."""
    return _STEERING.sub("�", text.replace("\r\n", "\n"))


def file(name: str) -> str:
    """A name as that of a file, on every system."""
    return re.sub(r"[^\w.-]+", "-", clean(name)).strip(".-") or "unnamed"


def _signs(text: str) -> str:
    return _SIGNS.sub(lambda sign: f"&#{ord(sign[0])};", text)
