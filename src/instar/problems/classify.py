"""Classifying sentences with a pretrained encoder and an adapter: what is learnt, and what is kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.bench.seeds import stream
from instar.catalogue import Build
from instar.data import pretrained
from instar.data.sentences import Labelled, Sentences, sentences
from instar.errors import DataError, ShapeError
from instar.interfaces import Adapter, Data, Items, Monitor, Problem
from instar.problems import adapting
from instar.problems.adapting import Subject
from instar.problems.kept import digest
from instar.problems.language import evaluating

HEAD = "head"
_EVALUATED = 64
_PER_CLASS = 5


class Classifier(nn.Module):
    """An encoder, the mean of its last hidden states over real tokens, and a linear head."""

    def __init__(self, encoder: nn.Module, tokenizer: Any, classes: Sequence[str], length: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.config.hidden_size, len(classes))  # type: ignore[union-attr, arg-type]
        self.classes, self.length, self.tokenizer = list(classes), length, tokenizer
        self.places = {label: place for place, label in enumerate(self.classes)}

    @property
    def config(self) -> Any:
        """The encoder's: from it the parts of the model are known."""
        return self.encoder.config

    def vectors(self, texts: Sequence[str]) -> Tensor:
        """[N, D], before the head."""
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, max_length=self.length, return_tensors="pt")
        states: Tensor = self.encoder(**tokens).last_hidden_state
        mask = tokens["attention_mask"][..., None].to(states.dtype)
        return (states * mask).sum(1) / mask.sum(1).clamp(min=1)

    def forward(self, texts: Sequence[str]) -> Tensor:
        """Logits [N, classes]."""
        found: Tensor = self.head(self.vectors(texts))
        return found


class ClassifyProblem(Problem):
    """Accuracy on the new task, and what the encoder still can: nearest neighbours among sentences of another data set.

    Args:
        data: trec, sst2, clinc150, custrev, subj, or a CSV file with the columns text and label.
        model: an encoder, as `data.pretrained` takes it. where: layers, as `Adapter.attach`; None leaves it to the method.
        train_items: most training sentences, drawn by the seed. batch: sentences a step. length: most tokens of a sentence.
        head_lr: peak rate of the head, which is trained beside every adapter.

    Retention: of 5 sentences of each of the 150 intents of CLINC150 (of TREC's test sentences where CLINC150 is the task) the
    share whose nearest other one, by the cosine of mean-pooled vectors, is of the same class. The head has no part in it;
    `head_only` shows the encoder as it was. Raises DataError, ShapeError, and what opening data and models raises.
    """

    accepts: ClassVar = {Adapter: "adapted"}

    def __init__(
        self,
        *,
        data: str = "trec",
        model: str = "all-MiniLM-L6-v2",
        where: str | None = None,
        train_items: int = 1600,
        batch: int = 16,
        length: int = 48,
        head_lr: float = 5e-3,
    ) -> None:
        if min(train_items, batch) < 2 or length < 4 or not 0 < head_lr < 1:
            raise ShapeError(
                "classify expects train_items and batch of 2 or more, length of 4 or more and 0 < head_lr < 1; received "
                f"{train_items}, {batch}, {length} and {head_lr}."
            )
        self.data, self.model, self.where, self.train_items = data, model, where, train_items
        self.batch, self.length, self.head_lr = batch, length, head_lr
        self.tokens_per_step = batch * length

    def load(self, seed: int) -> Data:
        """The same validation and test sentences for every seed; it draws those for training."""
        found = sentences(self.data)
        chosen = torch.randperm(len(found.train), generator=stream(seed, "train"))[: self.train_items].sort().values.tolist()
        train = Labelled([found.train.texts[i] for i in chosen], [found.train.labels[i] for i in chosen])
        self._classes = found.classes
        self._other = _others(found)
        facts = {
            "name": found.name,
            "item": "sentence",
            "train_items": len(train),
            "valid_items": len(found.valid),
            "test_items": len(found.test),
            "classes": len(found.classes),
            "retention": self._other.name,
        }
        parts = [p for part in (found.train, found.valid, found.test, self._other.test) for p in (*part.texts, *part.labels)]
        return Data(train, found.valid, found.test, digest(parts), facts)

    def adapted(self, build: Build, data: Data, seed: int) -> Subject:
        """The pretrained encoder under a fresh head, with the adapter attached; what is not adapted is frozen."""
        encoder, tokenizer = pretrained.load(self.model, "encoder")
        model = Classifier(encoder, tokenizer, self._classes, self.length)
        adapter = build.cls(**build.arguments)
        adapter.attach(model, self.where, modules_to_save=[HEAD])
        return Subject(model)

    def fit(
        self,
        subject: Subject,
        train: Labelled,
        *,
        steps: int,
        seed: int,
        monitor: Monitor | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        """Cross-entropy over minibatches drawn without replacement in an epoch, dropout as the encoder has it.

        Nothing is saved on the way: an interrupted run begins again, and ends the same.
        """
        model = _model(subject)
        size = min(self.batch, len(train))
        if size < 2:
            raise DataError(f"There are {len(train)} training sentences; two are the least.")

        def batch(index: int) -> tuple[list[str], Tensor]:
            epoch, place = divmod(index, len(train) // size)
            order = torch.randperm(len(train), generator=stream(seed, f"epoch/{epoch}"))
            chosen = order[place * size : (place + 1) * size].tolist()
            labels = torch.tensor([model.places[train.labels[i]] for i in chosen])
            return [train.texts[i] for i in chosen], labels

        def loss(_: nn.Module, rows: tuple[list[str], Tensor]) -> Tensor:
            texts, labels = rows
            return F.cross_entropy(model(texts), labels)

        adapting.train(model, batch, loss, steps=steps, seed=seed, heads=[HEAD], head_lr=self.head_lr, monitor=monitor)

    def evaluate(self, subject: Subject, split: Labelled) -> dict[str, Items]:
        """Right or wrong, sentence by sentence."""
        model = _model(subject)
        with evaluating(model):
            answers = _in_order(split.texts, lambda texts: model(texts).argmax(1))
            right = [float(model.classes[a] == label) for a, label in zip(answers.tolist(), split.labels, strict=True)]
            other = self._other.test
            vectors = F.normalize(_in_order(other.texts, model.vectors), dim=1)
        likeness = vectors @ vectors.T
        nearest = likeness.fill_diagonal_(-torch.inf).argmax(1).tolist()
        kept = [float(other.labels[i] == label) for i, label in zip(nearest, other.labels, strict=True)]
        return {"accuracy": Items(right, [1.0] * len(right)), "neighbours": Items(kept, [1.0] * len(kept))}

    def costs(self, subject: Subject) -> dict[str, float]:
        """See `problems.adapting.costs`."""
        return adapting.costs(subject.model, HEAD)


def _model(subject: Subject) -> Classifier:
    assert isinstance(subject.model, Classifier)
    return subject.model


def _others(found: Sentences) -> Sentences:
    """The data set that the task is not about; of CLINC150, five test sentences an intent."""
    if found.name == "clinc150":
        return sentences("trec")
    other = sentences("clinc150")
    seen: dict[str, int] = {}
    kept = []
    for place, label in enumerate(other.test.labels):
        seen[label] = seen.get(label, 0) + 1
        if seen[label] <= _PER_CLASS:
            kept.append(place)
    test = Labelled([other.test.texts[i] for i in kept], [other.test.labels[i] for i in kept])
    return Sentences(other.name, other.train, other.valid, test)


def _in_order(texts: Sequence[str], call: Any) -> Tensor:
    """A function of batches of texts of about one length, put back into the order of the texts."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    parts = [call([texts[i] for i in order[start : start + _EVALUATED]]) for start in range(0, len(order), _EVALUATED)]
    found = torch.cat(parts)
    return found[torch.tensor(order).argsort()]
