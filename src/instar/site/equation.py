"""An equation of a card: as MathML, which browsers set without a script or a font, with the LaTeX of the card beneath."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from latex2mathml import converter

from instar.site import text

_TAGS = re.compile(
    r"math|m(row|i|o|n|text|space|sub|sup|subsup|frac|sqrt|root|under|over|underover|table|tr|td|style|padded|phantom)"
)
_GIVEN = re.compile(
    r"xmlns|display(style)?|form|stretchy|fence|separator|symmetric|accent(under)?|mathvariant|scriptlevel|(min|max)size|width|height|"
    r"depth|[lr]space|column(align|spacing)|rowspacing|linethickness|movablelimits"
)


def markdown(latex: str) -> str:
    """The equation set, and as it was written; what cannot be set, or would be more than mathematics, only as it was written."""
    source = text.block(latex.strip(), "latex")
    found = [mathml(part) for part in _parts(latex)]
    if None in found:
        return source
    maths = "".join(f"<span>{part}</span>" for part in found)
    return f'<div class="equation">{maths}</div>\n\n<details markdown="1"><summary>LaTeX</summary>\n\n{source}\n\n</details>'


def mathml(latex: str) -> str | None:
    """MathML of an equation in LaTeX; None where a command is unknown, or where anything but mathematics comes of it."""
    known = re.sub(r"\\arg(?![A-Za-z])", r"\\operatorname{arg}", text.clean(latex).strip())
    try:
        found = converter.convert(known, display="block").replace("\\_", "_")
    except Exception:  # the converter has no base for its errors; whatever it cannot read is shown as written
        return None
    reader = _Reader()
    reader.feed(found)
    reader.close()
    return None if reader.strange or re.search(r"\\[A-Za-z]", found) else " ".join(found.split())


def _parts(latex: str) -> list[str]:
    """Equations that wide spaces part, so that a narrow page has them one below the other; those inside braces stay."""
    parts, depth = [""], 0
    for piece in re.split(r"(\\q?quad(?![A-Za-z])|\\[{}]|\\left\b|\\right\b|\\begin\b|\\end\b|[{}])", latex):
        depth += (piece in ("{", "\\left", "\\begin")) - (piece in ("}", "\\right", "\\end"))
        if depth == 0 and piece in ("\\quad", "\\qquad"):
            parts.append("")
        else:
            parts[-1] += piece
    return [part for part in parts if part.strip()]


class _Reader(HTMLParser):
    """Whether a page has anything that is not mathematics."""

    strange = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.strange |= not _TAGS.fullmatch(tag) or not all(_GIVEN.fullmatch(name) for name, _ in attrs)

    def handle_endtag(self, tag: str) -> None:
        self.strange |= not _TAGS.fullmatch(tag)

    def handle_comment(self, data: str) -> None:
        self.strange = True

    def handle_decl(self, decl: str) -> None:
        self.strange = True

    def handle_pi(self, data: str) -> None:
        self.strange = True

    def unknown_decl(self, data: str) -> None:
        self.strange = True
