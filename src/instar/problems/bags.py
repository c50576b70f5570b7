"""Bags of instances, each with one label: which bag holds what is looked for?"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from instar.bench.fit import Precision, fit
from instar.bench.seeds import stream
from instar.catalogue import Build
from instar.data import bags
from instar.errors import DataError, ShapeError
from instar.interfaces import Data, Floor, Items, Monitor, Pooling, Problem
from instar.problems.kept import digest
from instar.problems.language import device_of, evaluating
from instar.problems.scaling import scaled

_DEFAULT = "elephant"
Batch = tuple[Tensor, Tensor, Tensor]
"""Instances [B, N, F], which are real [B, N], and classes [B]; padding is on the right."""


@dataclass(frozen=True)
class Split:
    """Instances float32 [N, F] of each bag, and its class."""

    instances: Sequence[NDArray[np.float32]]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.instances)

    def batch(self, chosen: Sequence[int], kept: Sequence[Tensor] | None = None) -> Batch:
        """Some bags; kept: of each, the instances that are seen."""
        some = [torch.from_numpy(self.instances[i]) for i in chosen]
        if kept is not None:
            some = [bag[own] for bag, own in zip(some, kept, strict=True)]
        x = nn.utils.rnn.pad_sequence(some, batch_first=True)
        mask = torch.arange(x.shape[1]) < torch.tensor([[len(bag)] for bag in some])
        return x, mask, torch.from_numpy(self.labels[list(chosen)])


class BagClassifier(nn.Module):
    """logits = W relu(pool({relu(E x_n + b)}_n)) + c: the embedding of instances and the head are the same for every pooling.

    Shapes: instances [B, N, F], mask bool [B, N] -> [B, classes].
    """

    def __init__(self, build: Build, *, features: int, classes: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Linear(features, width)
        self.pooling: Pooling = build(width)
        self.head = nn.Linear(self.pooling.out_width, classes)
        self.build = build

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.head(F.relu(self.pooling(F.relu(self.embedding(x)), mask=mask)))


class BagsProblem(Problem):
    """Area under the ROC curve and accuracy over held-out bags. An item is a bag.

    Args:
        data: `elephant` (the default) or `musk1`, or a table of your own with the columns bag, label and one for each feature
            (`data.bags.table`).
        folds: K. Seed s holds out the (s mod K)-th of K stratified parts of the bags, shuffled anew for every K seeds: K seeds
            are one cross-validation. A further part is the validation split.
        width: of the embedding. batch: bags a step. lr: peak learning rate. drop: the share of the instances that training
            leaves out of each bag, other ones each time; one is always kept.
        precision: float32 or bf16.

    Each feature has mean 0 and variance 1 over the training instances; a missing value is the mean. The area is the mean over
    classes of one against the rest, which for two classes is the area itself. Raises ShapeError, DataError, UnknownNameError.
    Protocol: Ilse et al. 2018 (arXiv 1802.04712), Ramsauer et al. 2020 (arXiv 2008.02217).
    """

    accepts: ClassVar = {Pooling: "classifier"}

    def __init__(
        self,
        *,
        data: str | None = None,
        folds: int = 10,
        width: int = 64,
        batch: int = 16,
        lr: float = 1e-3,
        drop: float = 0.0,
        precision: Precision = "float32",
    ) -> None:
        if min(width, batch) < 1 or folds < 3 or not 0 <= drop < 1:
            raise ShapeError(
                "bags expects width and batch of at least 1, folds of at least 3, for training, validation and test, and drop of "
                f"at least 0 and below 1; received {width}, {batch}, {folds} and {drop}."
            )
        self.data, self.folds, self.width, self.batch = data, folds, width, batch
        self.lr, self.drop, self.precision = lr, drop, precision
        self.features, self.classes, self.largest = 1, 2, 1
        self.tokens_per_step = batch

    def load(self, seed: int) -> Data:
        """The bags, and the part of them that this seed holds out."""
        found = bags.bags(_DEFAULT if self.data is None else self.data)
        parts = _parts(found, self.folds, seed)
        missing = sum(int(np.isnan(bag).sum()) for bag in found.instances)
        train, valid, test = _normalised(found, parts)
        self.features, self.classes = len(found.features), len(found.classes)
        self.largest = max(map(len, found.instances))
        self.tokens_per_step = round(self.batch * sum(map(len, train.instances)) / len(train))
        facts = {
            **{"name": found.name, "item": "bag", "bags": len(found), "classes": self.classes, "features": self.features},
            **{"train_items": len(train), "valid_items": len(valid), "test_items": len(test), "folds": self.folds},
            **{"instances": sum(map(len, found.instances)), "largest_bag": self.largest, "missing_values": missing},
        }
        made = digest([f"bags/1/{self.folds}", *found.classes, *found.features, *found.ids, *found.instances, found.labels])
        return Data(train, valid, test, made, facts)

    def floors(self, data: Data) -> dict[str, Floor]:
        """By chance, and by naming one class."""
        train, test = data.train.labels, data.test.labels
        most = int(np.bincount(train, minlength=self.classes).argmax())
        named = Floor(float((test == most).mean()), "naming the most frequent class")
        return {"auc": Floor(0.5, "scores by chance"), "accuracy": named}

    def classifier(self, build: Build, data: Data, seed: int) -> BagClassifier:
        """The pooling between an embedding and a head."""
        return BagClassifier(build, features=self.features, classes=self.classes, width=self.width)

    def fit(
        self,
        subject: BagClassifier,
        train: Split,
        *,
        steps: int,
        seed: int,
        monitor: Monitor | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        """Every bag once an epoch (but for a rest smaller than a batch), in another order each time."""
        size = min(self.batch, len(train))
        order: dict[int, Tensor] = {}

        def batch(index: int) -> Batch:
            epoch, place = divmod(index, len(train) // size)
            if epoch not in order:
                order.clear()
                order[epoch] = torch.randperm(len(train), generator=stream(seed, f"epoch/{epoch}"))
            chosen = order[epoch][place * size :][:size].tolist()
            if not self.drop:
                return train.batch(chosen)
            draw = stream(seed, f"kept/{index}")
            counts = [len(train.instances[i]) for i in chosen]
            kept = [torch.randperm(n, generator=draw)[: max(1, round((1 - self.drop) * n))] for n in counts]
            return train.batch(chosen, kept)

        def loss(model: nn.Module, given: Batch) -> Tensor:
            logits, labels = _ask(model, given)
            return F.cross_entropy(logits.float(), labels)

        fit(
            subject,
            batch,
            loss,
            steps=steps,
            lr=self.lr,
            precision=self.precision,
            seed=seed,
            monitor=monitor,
            checkpoint=checkpoint,
        )

    def evaluate(self, subject: BagClassifier, split: Split) -> dict[str, Items]:
        """Each bag: right or wrong, and the share of bags of other classes that its class's score leaves below."""
        scores = torch.zeros(len(split), self.classes, dtype=torch.float64)
        with evaluating(subject):
            for start in range(0, len(split), self.batch):
                chosen = range(start, min(start + self.batch, len(split)))
                logits, _ = _ask(subject, split.batch(chosen))
                scores[start : start + self.batch] = torch.log_softmax(logits.double(), 1).cpu()
        right = (scores.argmax(1).numpy() == split.labels).astype(float)
        return {"auc": area(scores.numpy(), split.labels), "accuracy": Items(right.tolist(), [1.0] * len(split))}

    def costs(self, subject: BagClassifier) -> dict[str, float]:
        """Numbers that are learnt by the pooling alone."""
        return {"pooling_parameters": float(sum(p.numel() for p in subject.pooling.parameters()))}


def area(scores: NDArray[np.float64], labels: NDArray[np.int64]) -> Items:
    """Mean over classes of the area under the ROC curve of one against the rest, [n, classes] scores; ties count half.

    An item is a bag: how many of other classes have a lower score of its own class; classes weigh the same.
    """
    totals, weights = np.zeros(len(labels)), np.zeros(len(labels))
    for own in np.unique(labels):
        members = np.flatnonzero(labels == own)
        others = np.sort(scores[labels != own, own])
        below, upto = (np.searchsorted(others, scores[members, own], side=side) for side in ("left", "right"))
        weights[members] = 1 / len(members)
        totals[members] = weights[members] * (below + upto) / (2 * max(len(others), 1))
    return Items(totals.tolist(), weights.tolist())


def _parts(found: bags.Bags, folds: int, seed: int) -> list[list[int]]:
    """Places of the bags of training, validation and test."""
    fold: NDArray[np.int64] = np.zeros(len(found), dtype=np.int64)
    first = 0
    for own in range(len(found.classes)):
        members = np.flatnonzero(found.labels == own)
        if len(members) < folds:
            raise DataError(
                f"{found.name}: the class {found.classes[own]} has {len(members)} bags; folds={folds} needs as many, one "
                "for each part. Give fewer folds (at least 3), or more bags."
            )
        # by a hash of the names: the order of the file does not matter
        order = sorted(members, key=lambda place: hashlib.sha256(f"{seed // folds}/{found.ids[place]}".encode()).digest())
        fold[order] = (first + np.arange(len(order))) % folds  # each class goes on where the last has stopped: parts of one size
        first += len(order)
    test, valid = seed % folds, (seed + 1) % folds
    return [np.flatnonzero(wanted).tolist() for wanted in ((fold != test) & (fold != valid), fold == valid, fold == test)]


def _normalised(found: bags.Bags, parts: Sequence[Sequence[int]]) -> list[Split]:
    train = [found.instances[place] for place in parts[0]]
    made = [np.nan_to_num(bag) for bag in scaled(found.name, "feature", found.features, train, found.instances)]
    return [Split([made[place] for place in part], found.labels[list(part)]) for part in parts]


def _ask(model: nn.Module, given: Batch) -> tuple[Tensor, Tensor]:
    """Logits and classes, where the model is."""
    x, mask, labels = (part.to(device_of(model)) for part in given)
    found: Any = model(x, mask)
    return found, labels
