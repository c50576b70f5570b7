"""Judgements of every verdict, made without a run."""

from __future__ import annotations

from typing import Any

from instar import catalogue
from instar.bench.claims import Judgement


def judgement(method: str = "gla", claim: str | None = None, **changes: Any) -> Judgement:
    """A judgement of the first claim of a method that can be tested, or of the one named."""
    card = catalogue.method(method)
    found = next(c for c in card.claims if c.kind != "untestable" and claim in (None, c.id))
    given: dict[str, Any] = {
        "method": method,
        "claim": found.id,
        "kind": found.kind,
        "measure": found.measure,
        "subject": method,
        "against": None,
        "direction": "lower",
        "margin": 0.0,
        "verdict": "holds",
        "value": 0.5,
        "interval": (0.25, 0.75),
        "seeds": 5,
        "drawn_from": "seeds",
        "text": "A sentence.",
        "source": "Table 1",
        "paper_value": None,
        "reason": None,
        "core_minutes": 1.0,
        "command": "instar reproduce gla",
    }
    return Judgement(**{**given, **changes})
