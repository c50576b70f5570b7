"""Learning labels by gradient: what every network that labels tokens shares, and the choice among several beginnings."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.bench.fit import descend
from instar.bench.seeds import derive, initialising, stream
from instar.errors import ShapeError
from instar.interfaces import Examples, Monitor
from instar.lab.programs.vocabulary import IGNORED, Vocabulary

_AT_ONCE = 8192
"""Tokens of a batch in evaluation."""

Network = TypeVar("Network", bound=nn.Module)
Logits = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Try:
    """One beginning: the share of labels that its final form gets right on the validation examples."""

    seed: int
    accuracy: float


def learn(
    build: Callable[[], Network],
    loss: Callable[[nn.Module, Tensor, Tensor, int, int], Tensor],
    final: Callable[[Network], Logits],
    vocabulary: Vocabulary,
    train: Examples,
    valid: Examples,
    *,
    lr: float,
    steps: int,
    batch: int,
    restarts: int,
    seed: int,
    clip: float = math.inf,
    monitor: Monitor | None = None,
    checkpoint: Path | None = None,
) -> tuple[Network, list[Try]]:
    """Train `restarts` networks, each from a seed of its own for its share of the steps, and keep the best of validation.

    Adam without weight decay at a constant rate, after a linear warm-up. loss: logits of (network, ids, mask, step, steps of this
    network); the mean over sequences of the mean negative log-likelihood of their labels is descended. final: the function by
    which a trained network is judged. The first of equally good ones is kept.
    """
    if steps < restarts or restarts < 1 or batch < 1 or not lr > 0:
        raise ShapeError(
            f"Learning expects steps ≥ restarts ≥ 1, batch ≥ 1 and lr > 0; received {steps}, {restarts}, {batch} and {lr}."
        )
    ids, mask = vocabulary.ids(train.tokens)
    targets = vocabulary.targets(train)
    size = min(batch, len(train))
    best: Network | None = None
    tries: list[Try] = []
    for turn in range(restarts):
        begun, end = (part * steps // restarts for part in (turn, turn + 1))
        own = derive(seed, f"restart/{turn}")
        with initialising(own):
            network = build()
        rows = _batches(len(train), size, own)

        def given(index: int, rows: Callable[[int], Tensor] = rows) -> tuple[int, Tensor]:
            return index, rows(index)

        def value(model: nn.Module, part: tuple[int, Tensor], count: int = end - begun) -> Tensor:
            step, chosen = part
            return nll(loss(model, ids[chosen], mask[chosen], step, count), targets[chosen])

        descend(
            network,
            torch.optim.Adam(network.parameters(), lr=lr),
            given,
            value,
            steps=end - begun,
            schedule="constant",
            clip=clip,
            seed=own,
            monitor=None if monitor is None else _shifted(monitor, begun),
            checkpoint=None if checkpoint is None else checkpoint / f"restart-{turn}",
        )
        right = accuracy(answers(final(network), vocabulary, valid.tokens), valid)
        if not tries or right > max(one.accuracy for one in tries):
            best = network
        tries.append(Try(own, right))
    assert best is not None
    return best, tries


def nll(logits: Tensor, targets: Tensor) -> Tensor:
    """The mean over sequences of the mean negative log-likelihood in nats over the labels that are asked for."""
    if targets.dim() == 1:
        return F.cross_entropy(logits, targets)
    targets = targets[:, : logits.shape[1]]
    each = F.cross_entropy(logits.mT, targets, ignore_index=IGNORED, reduction="none")
    asked = (targets != IGNORED).sum(1)
    return (each.sum(1) / asked.clamp(min=1)).sum() / (asked > 0).sum().clamp(min=1)


def answers(logits: Logits, vocabulary: Vocabulary, sequences: Sequence[Sequence[str]]) -> list[list[str]]:
    """The labels of largest logit, the first of equal ones, for each sequence by itself."""
    found: list[list[str]] = []
    rows = max(1, _AT_ONCE // vocabulary.length)
    for start in range(0, len(sequences), rows):
        part = sequences[start : start + rows]
        ids, mask = vocabulary.ids(part)
        with torch.no_grad():
            chosen = logits(ids, mask).argmax(-1)
        for sequence, row in zip(part, chosen.view(len(part), -1).tolist(), strict=True):
            found.append([vocabulary.labels[i] for i in (row if vocabulary.pooled else row[: len(sequence)])])
    return found


def accuracy(said: Sequence[Sequence[str]], examples: Examples) -> float:
    """The share of labels that are right."""
    pairs = [
        (said_label, label)
        for row, labels in zip(said, examples.labels, strict=True)
        for said_label, label in zip(row, labels, strict=True)
        if label is not None
    ]
    return sum(a == b for a, b in pairs) / max(1, len(pairs))


def _batches(count: int, size: int, seed: int) -> Callable[[int], Tensor]:
    """Rows of step n: every row once an epoch, but for a rest smaller than a batch."""
    order: dict[int, Tensor] = {}

    def batch(index: int) -> Tensor:
        epoch, place = divmod(index, count // size)
        if epoch not in order:
            order.clear()
            order[epoch] = torch.randperm(count, generator=stream(seed, f"epoch/{epoch}"))
        return order[epoch][place * size : (place + 1) * size]

    return batch


def _shifted(monitor: Monitor, begun: int) -> Monitor:
    """Steps counted over all beginnings."""
    return lambda step, loss: monitor(begun + step, loss)
