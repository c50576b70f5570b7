"""Plain text out of what feeds and pages send, and the sentences and words in it."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from html.parser import HTMLParser

LONGEST = 200_000
"""Characters of one article that are read; what is beyond them is left out of the text, never of the raw store."""
_HIDDEN = {"script", "style", "noscript", "template", "iframe", "object", "svg", "head", "title"}
_BLOCKS = {"p", "br", "div", "li", "tr", "h1", "h2", "h3", "h4", "h5", "h6", "td", "blockquote", "section", "article"}
_WORD = re.compile(r"[A-Za-z0-9]+(?:['’][A-Za-z]+)?")
_END = re.compile(r"(?<=[.!?])[\"'”’)\]]*\s+(?=[\"'“‘(\[]?[A-Z0-9])|\n+")
_SHORT = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|Inc|Corp|Co|Ltd|St|vs|No|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec|[A-Z])\.$")


class _Reader(HTMLParser):
    """Text between tags; nothing of scripts, styles and frames."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.hidden: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag in _HIDDEN:
            self.hidden.append(tag)
        elif tag in _BLOCKS:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in self.hidden:
            del self.hidden[self.hidden.index(tag) :]
        elif tag in _BLOCKS:
            self.parts.append("\n")

    def parse_marked_section(self, i: int, report: bool = True) -> int:
        """`<![x[` is a comment up to its `>`, as in browsers and later Pythons; 3.11 raises AssertionError for some names."""
        return self.parse_bogus_comment(i, report)

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.parts.append(data)


def plain(markup: str) -> str:
    """Text of HTML: no tags, no scripts, no control characters, one space for many, lines where blocks end."""
    text = markup[: 4 * LONGEST]
    if "<" in text or "&" in text:
        reader = _Reader()
        reader.feed(text)
        reader.close()
        text = "".join(reader.parts)
    text = unicodedata.normalize("NFC", text)
    text = "".join(c if c in "\n\t" or unicodedata.category(c)[0] != "C" else " " for c in text)
    lines = (" ".join(line.split()) for line in text.splitlines())
    return "\n".join(line for line in lines if line)[:LONGEST]


def words(text: str) -> list[str]:
    """Words in lower case."""
    return [word.lower().replace("’", "'") for word in _WORD.findall(text)]


def sentences(text: str) -> list[str]:
    """Sentences in order. A full stop after a title, a month, `Inc.` or one capital ends none."""
    found: list[str] = []
    start = 0
    for gap in _END.finditer(text):
        piece = text[start : gap.start()]
        if "\n" not in gap[0] and _SHORT.search(piece):
            continue
        found.append((piece + gap[0]).strip())
        start = gap.end()
    found.append(text[start:].strip())
    return [piece for piece in found if _WORD.search(piece)]


def digest(text: str) -> str:
    """SHA-256 of the words alone: the same text in other typography is the same; "" where there are none."""
    found = words(text)
    return hashlib.sha256(" ".join(found).encode()).hexdigest() if found else ""
