"""What an edit did: whether the facts are said, also in other words, and whether neighbours are left alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from instar.editing.above import Above
from instar.editing.layout import Layout, Parts, layout
from instar.editing.rows import Row, pack, row
from instar.editing.running import resting
from instar.interfaces import Fact
from instar.items import Items

Kind = Literal["rewrite", "paraphrase", "neighbour"]
KINDS: tuple[Kind, ...] = ("rewrite", "paraphrase", "neighbour")
_BATCH = 64


@dataclass(frozen=True)
class Said:
    """How a model continues one prompt of a fact."""

    fact: int
    kind: Kind
    wanted: float
    """Mean log-probability of a token of what should be said: the target; of a neighbour, the old answer."""
    other: float | None
    """Of the other one; None where `old` is not known."""
    accuracy: float
    """Share of the tokens of what should be said that are the likeliest, given those before."""


@dataclass(frozen=True)
class Evaluation:
    """Every prompt of every fact, in the order of the facts."""

    said: Sequence[Said]

    def success(self, kind: Kind) -> Items | None:
        """By fact: prompts at which what should be said is likelier than the other one, of those where both are known."""
        return _by_fact((s.fact, float(s.wanted > s.other)) for s in self.said if s.kind == kind and s.other is not None)

    def accuracy(self, kind: Kind) -> Items | None:
        """By fact: tokens of what should be said that are the likeliest."""
        return _by_fact((s.fact, s.accuracy) for s in self.said if s.kind == kind)

    def figures(self) -> dict[str, float]:
        """efficacy, generalisation, specificity (success by kind), their harmonic mean, and accuracies; what is known of them."""
        names = dict(zip(KINDS, ("efficacy", "generalisation", "specificity"), strict=True))
        found = {name: items.value for kind, name in names.items() if (items := self.success(kind)) is not None}
        if len(found) == len(names):
            found["score"] = harmonic(list(found.values()))
        return found | {
            f"{name} accuracy": items.value for kind, name in names.items() if (items := self.accuracy(kind)) is not None
        }


def evaluate(model: nn.Module, tokenizer: Any, facts: Sequence[Fact], *, parts: Parts | None = None) -> Evaluation:
    """How the model stands to facts: after their prompts, their paraphrases, and prompts about their neighbours.

    Neighbours without `old` have no answer to hold to and are left out. One forward pass a prompt and answer. Raises EditError
    where the tokenizer joins a prompt with its answer.
    """
    asked: list[tuple[int, Kind, str, str, str | None]] = []
    for number, fact in enumerate(facts):
        asked.append((number, "rewrite", fact.prompt, fact.target, fact.old))
        asked += [(number, "paraphrase", prompt, fact.target, fact.old) for prompt in fact.paraphrases]
        if fact.old is not None:
            asked += [(number, "neighbour", prompt, fact.old, fact.target) for prompt in fact.neighbours]
    wanted = [row(tokenizer, prompt, None, answer) for _, _, prompt, answer, _ in asked]
    other = [None if against is None else row(tokenizer, prompt, None, against) for _, _, prompt, _, against in asked]
    where = layout(model, parts)
    known = iter(scores(model, where, [one for one in other if one is not None]))
    against = [None if one is None else next(known)[0] for one in other]
    return Evaluation(
        [
            Said(number, kind, likely, less, right)
            for (number, kind, *_), (likely, right), less in zip(asked, scores(model, where, wanted), against, strict=True)
        ]
    )


@torch.no_grad()
def scores(model: nn.Module, where: Layout, rows: Sequence[Row]) -> list[tuple[float, float]]:
    """Of each row's target: the mean log-probability of a token, and the share of tokens that are the likeliest."""
    found: list[tuple[float, float]] = [(math.nan, math.nan)] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
    device = next(model.parameters()).device
    with resting(model):
        for start in range(0, len(rows), _BATCH):
            places = order[start : start + _BATCH]
            batch = pack([rows[i] for i in places], device)
            logp = Above(model, where, batch, 0).run()[0].float().log_softmax(-1)
            real = batch.target >= 0
            likely = logp.gather(-1, batch.target.clamp(min=0)[..., None])[..., 0]
            right = (logp.argmax(-1) == batch.target) & real
            for place, mean, share in zip(
                places,
                ((likely * real).sum(1) / real.sum(1)).tolist(),
                (right.sum(1) / real.sum(1)).tolist(),
                strict=True,
            ):
                found[place] = (mean, share)
    return found


def harmonic(values: Sequence[float]) -> float:
    """The harmonic mean; 0 where one of them is."""
    return 0.0 if min(values) <= 0 else len(values) / sum(1 / value for value in values)


def table(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """Figures side by side, as a Markdown table."""
    lines = ["| | before | after |", "|---|---:|---:|"]
    for name in dict.fromkeys([*before, *after]):
        lines.append(f"| {name} | {_shown(before.get(name))} | {_shown(after.get(name))} |")
    return "\n".join(lines)


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _by_fact(pairs: Any) -> Items | None:
    totals: Counter[int] = Counter()
    weights: Counter[int] = Counter()
    for fact, value in pairs:
        totals[fact] += value
        weights[fact] += 1
    facts = sorted(weights)
    return Items([float(totals[f]) for f in facts], [float(weights[f]) for f in facts]) if facts else None
