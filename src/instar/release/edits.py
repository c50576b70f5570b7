"""A stored language model with facts written into it, as the next stored version."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instar.data import pretrained
from instar.data.topics import topics
from instar.editing.reporting import before_and_after
from instar.editing.statistics import default_texts
from instar.gate.predictions import Cases
from instar.gate.result import Result
from instar.interfaces import Editor, Fact, Monitor
from instar.receipts.facts import Facts
from instar.release import cases as standing
from instar.release import gating, writing

_OTHERS = 40
"""Items that have nothing to do with the facts."""
_CONTINUED = 3
"""Prompts that are continued, for fluency."""


@dataclass(frozen=True)
class Edited:
    """What was written, and what it did."""

    folder: Path
    receipt: Facts
    before: dict[str, float]
    """Figures of `reporting.before_and_after`."""
    after: dict[str, float]
    gate: Result | None


def edit(
    name: str | Path,
    facts: Sequence[Fact],
    editor: Editor,
    out: str | Path,
    *,
    texts: Sequence[str] | None = None,
    dtype: str = "auto",
    gated: bool = True,
    command: str = "",
    monitor: Monitor | None = None,
    progress: Callable[[str], Any] = lambda name: None,
) -> Edited:
    """Write facts into a stored model, and the result to a new folder with its receipt and the gate against the version before.

    Args:
        name: as in `pretrained.floats`; it stays as it is. texts: on which drift is measured; by default English inside Python.
        dtype: of the weights while they are edited and as they are written; auto keeps the stored one.
        gated: whether both versions are asked facts, paraphrases, neighbours and other items (`cases`).

    Memory is that of the model once and of the changed tensors. Raises EditError, ModelError, OutputError, DataError; nothing is
    written then.
    """
    writing.vacant(Path(out))
    source = pretrained.floats(name)
    model, tokenizer = pretrained.load(source, "causal", dtype)
    receipt = editor.edit(model, tokenizer, facts, monitor=monitor)
    shown = texts or default_texts()[-20:]
    before, after = before_and_after(model, tokenizer, facts, receipt, shown, generations=min(_CONTINUED, len(facts)))
    folder = writing.write(model, out, source=source, receipts=[receipt])
    del model
    judged = None
    if gated:
        judged = gating.gate(
            name,
            folder,
            cases(facts),
            settings={"dtype": dtype if dtype != "auto" else "float32"},
            command=command,
            progress=progress,
        )
    return Edited(folder, receipt.facts, before, after, judged)


def cases(facts: Sequence[Fact], seed: int = 0) -> Cases:
    """What an edit is asked, by `kind`: facts and paraphrases (the target is right), neighbours (the old answer is), and others.

    A fact whose old answer is not known cannot be made a choice, and is left out.
    """
    rows: list[tuple[str, str, str, list[str], str]] = []
    for number, fact in enumerate(facts):
        if fact.old is None or fact.old.strip() == fact.target.strip():
            continue
        choices = sorted((fact.target.strip(), fact.old.strip()))
        asked = [("fact", fact.prompt, fact.target)]
        asked += [("paraphrase", prompt, fact.target) for prompt in fact.paraphrases]
        asked += [("neighbour", prompt, fact.old) for prompt in fact.neighbours]
        rows += [
            (f"fact {number}/{kind} {place}", kind, prompt, choices, right.strip())
            for place, (kind, prompt, right) in enumerate(asked)
        ]
    others = standing.continuations(topics(), _OTHERS, seed)
    assert others.choices is not None  # continuations always come with them
    assert others.labels is not None
    return dataclasses.replace(
        others,
        name="facts, paraphrases, neighbours and others",
        ids=[*(row[0] for row in rows), *others.ids],
        inputs=[*(row[2] for row in rows), *others.inputs],
        labels=[*(row[4] for row in rows), *others.labels],
        choices=[*(row[3] for row in rows), *others.choices],
        columns={"kind": [*(row[1] for row in rows), *["other"] * len(others)]},
    )
