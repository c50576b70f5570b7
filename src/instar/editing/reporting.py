"""An edit in one table: what was said before and after it, and what became of everything else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from instar.editing.drift import drift, fluency
from instar.editing.evaluation import evaluate
from instar.editing.layout import Parts
from instar.interfaces import Fact
from instar.receipt import Receipt

Figures = dict[str, float]


def before_and_after(
    model: nn.Module,
    tokenizer: Any,
    facts: Sequence[Fact],
    receipt: Receipt,
    texts: Sequence[str] = (),
    *,
    generations: int = 0,
    parts: Parts | None = None,
) -> tuple[Figures, Figures]:
    """Figures of a model before and after an edit that stands on it; `evaluation.table` shows them side by side.

    Args:
        texts: held-out ones, for perplexity and drift. generations: so many prompts of facts are continued by 100 tokens, for
            fluency.

    Raises what `evaluate`, `drift` and `fluency` raise, and ReceiptError where the model was changed since the edit.
    """

    def figures() -> Figures:
        found = evaluate(model, tokenizer, facts, parts=parts).figures()
        if generations:
            found["fluency"] = fluency(model, tokenizer, [fact.prompt for fact in facts[:generations]])
        return found

    with receipt.reverted(model):
        before = figures()
    after = figures()
    if texts:
        moved = drift(model, tokenizer, receipt, texts)
        before |= {"perplexity": moved["perplexity before"]}
        after |= {"perplexity": moved["perplexity after"], "drift": moved["drift"]}
    return before, after
