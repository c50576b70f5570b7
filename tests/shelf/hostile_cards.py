"""A method whose card tries everything that a page, a script and a feed could fall for."""

from __future__ import annotations

from pathlib import Path

from instar.cards import Card, Paper

HOSTILE = "</script><script>alert(1)</script><!--\"'&<img src=x onerror=alert(2)>]]>\x00\x0b\ud800\u202e\ufffe end"


class Hostile:
    """Never built."""


def hostile() -> Card:
    paper = Paper(HOSTILE, "9999-12", ["A"], "@misc{x}", '0000.00000"><script>alert(3)</script>')
    return Card(
        slug="hostile",
        family=HOSTILE,
        title=HOSTILE,
        idea=f"{HOSTILE} zymurgy",
        when_not=HOSTILE,
        kind="system",
        domains=[HOSTILE],
        tasks=[HOSTILE],
        path=Path("hostile.toml"),
        paper=paper,
    )
