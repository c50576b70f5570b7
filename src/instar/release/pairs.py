"""The task of a language model: prompts, and what should follow them."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.bench.seeds import stream
from instar.data import pretrained
from instar.data.e2e import prompts
from instar.errors import DataError, ModelError
from instar.gate.predictions import Cases
from instar.interfaces import Versions
from instar.problems.generate_text import IGNORED, Writer
from instar.release import cases

_TESTED = 200
"""Held-out prompts that are scored, at most."""
_SCORED = 16
_OTHERS = 3

Rows = tuple[Tensor, Tensor, Tensor]


class Pairs:
    """See `adapting.Task`. Raises DataError for fewer pairs than a step takes, ModelError for a model that does not write."""

    heads: Sequence[str] = ()
    head_lr = 0.0
    unrelated = "causal"

    def __init__(self, source: Path, data: str, batch: int, length: int, dtype: str) -> None:
        if (kind := pretrained.kind_of(source)) != "causal":
            raise ModelError(f"{data} holds prompts and what follows, for a causal model; {source} is of the kind {kind}.")
        found = prompts(data)
        self.name, self.size, self.source = found.name, batch, source
        self.rows = [(one.prompt, target) for one in found.train for target in one.targets]
        self.items = len(self.rows)
        self.tested = found.test[:_TESTED]
        if self.items < batch:
            raise DataError(f"{data} has {self.items} pairs to train on; a step takes {batch}. Give a smaller --batch.")
        self.model, self.tokenizer = pretrained.load(source, "causal", dtype)
        self.writer = Writer(self.tokenizer, length)

    @property
    def body(self) -> Any:
        return self.model

    def batch(self, index: int, seed: int) -> Rows:
        epoch, place = divmod(index, self.items // self.size)
        order = torch.randperm(self.items, generator=stream(seed, f"epoch/{epoch}"))
        chosen = order[place * self.size : (place + 1) * self.size].tolist()
        return self.writer.batch([self.writer.row(*self.rows[i]) for i in chosen])

    def loss(self, model: nn.Module, rows: Rows) -> Tensor:
        """Nats of a token of the target."""
        return _nats(model, rows).sum() / _count(rows)

    def untrained(self) -> dict[str, float]:
        return self.score()

    @torch.no_grad()
    def score(self) -> dict[str, float]:
        """`nll`, nats a token of what should follow, and its `perplexity`."""
        rows = [self.writer.row(one.prompt, one.targets[0]) for one in self.tested]
        batches = [self.writer.batch(rows[i : i + _SCORED]) for i in range(0, len(rows), _SCORED)]
        nll = sum(float(_nats(self.model, part).double().sum()) for part in batches) / sum(map(_count, batches))
        return {"nll": nll, "perplexity": math.exp(nll)}

    def cases(self) -> Cases:
        """Text that has nothing to do with the task."""
        return cases.of(self.source, 100)

    def versions(self, old: str | Path) -> Versions:
        model, _ = pretrained.load(old, "causal", str(self.model.dtype).removeprefix("torch."))
        return Versions(model, self.model, [self.writer.row(*pair) for pair in self.rows], self.writer.fill)

    def tasks(self) -> Cases:
        """Held-out prompts, each with its answer and up to three others that follow other prompts.

        Raises DataError where all answers are one.
        """
        answers = sorted({target for one in self.tested for target in one.targets})
        draw = random.Random("tasks")
        asked = [(one.prompt, one.targets[0], [a for a in answers if a not in one.targets]) for one in self.tested]
        if not all(others for _, _, others in asked):
            raise DataError(f"All held-out answers of {self.name} are {answers[0]!r}: there is nothing to choose from.")
        return Cases(
            name=f"{self.name}, held-out prompts",
            ids=[str(place) for place in range(len(asked))],
            inputs=[f"{prompt}\n" for prompt, _, _ in asked],
            labels=[right for _, right, _ in asked],
            choices=[sorted([right, *draw.sample(others, min(_OTHERS, len(others)))]) for _, right, others in asked],
        )


def _nats(model: nn.Module, rows: Rows) -> Tensor:
    """−log p of every target token, 0 elsewhere."""
    ids, mask, targets = rows
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
    return F.cross_entropy(logits.transpose(1, 2), targets[:, 1:], ignore_index=IGNORED, reduction="none")


def _count(rows: Rows) -> int:
    return int((rows[2][:, 1:] != IGNORED).sum())
