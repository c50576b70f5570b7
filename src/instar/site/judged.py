"""Claims with what was found, as the pages show them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from instar.bench.claims import Judgement
from instar.report import ledger
from instar.shelf.views import ORDER
from instar.site import text

_COLOURS = {"holds": "holds", "does not hold here": "fails"}


def count(judgements: Sequence[Judgement]) -> str:
    """How many claims have each verdict."""
    often: Counter[str] = Counter(j.verdict for j in judgements)
    return ", ".join(f"{_verdict(verdict)} {often[verdict]}" for verdict in ORDER if often[verdict])


def listed(judgements: Sequence[Judgement]) -> str:
    """One item a claim: the verdict, the sentence, what was found and needed, the paper's own figure, the command."""
    return "\n".join(_item(j) for j in sorted(judgements, key=lambda j: ORDER.index(j.verdict)))


def rows(judgements: Sequence[Judgement], name: Callable[[str], str]) -> list[dict[str, Any]]:
    """The rows of the ledger of these claims; `name` makes Markdown of a method's slug."""
    return [_row(j) | {"method": name(j.method)} for j in judgements]


def _row(judgement: Judgement) -> dict[str, Any]:
    """A row of the ledger whose texts are Markdown."""
    row = asdict(judgement)
    against = judgement.against
    return row | {"text": text.plain(judgement.text), "against": text.plain(against) if isinstance(against, str) else against}


def _item(judgement: Judgement) -> str:
    row = _row(judgement)
    found, needed, source = ledger.found(row), ledger.needed(row), ledger.source(row)
    said = [f"Found {found}" + (f", needed {needed}" if needed else "") + (f"; {source}." if source else ".")] if found else []
    if judgement.reason:
        said.append(text.plain(judgement.reason))
    of_paper = f"{text.plain(judgement.paper_value)} " if judgement.paper_value else ""
    said.append(f"Paper: {of_paper}({text.plain(judgement.source)}).")
    if judgement.kind != "untestable":
        said.append(text.code(judgement.command))
    return f"- {_verdict(judgement.verdict)} {row['text']}\n    <br><small>{' '.join(said)}</small>"


def _verdict(verdict: str) -> str:
    return f'<span class="verdict {_COLOURS.get(verdict, "open")}">{verdict}</span>'
