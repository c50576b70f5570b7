"""A classifier of `transformers`, made of a pretrained encoder and fine-tuned on labelled sentences, whole; kept in the cache."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar import extras
from instar.bench.fit import fit
from instar.bench.seeds import initialising, stream
from instar.data import pretrained
from instar.data.sentences import Labelled
from instar.problems.kept import digest, kept
from instar.problems.language import evaluating

BATCH = 32
"""Sentences in a batch of those that are scored."""
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Tuned:
    """A fine-tuned classifier, and what decides it."""

    model: nn.Module
    tokenizer: Any
    recipe: list[Any]


@dataclass(frozen=True)
class Tuning:
    """How a classifier is made: AdamW (decay 0.01, cosine to a tenth) over all its weights, for some epochs."""

    encoder: str
    classes: Sequence[str]
    epochs: int
    lr: float
    batch: int
    length: int
    """Most tokens of a sentence."""

    def tuned(self, train: Labelled, seed: int) -> Tuned:
        """The classifier of these sentences and this seed; made once, then read."""
        encoder, tokenizer = pretrained.load(self.encoder, "encoder")
        transformers = extras.require("transformers", "models")
        config = copy.deepcopy(encoder.config)
        config.num_labels = len(self.classes)
        with initialising(seed):
            model = transformers.AutoModelForSequenceClassification.from_config(config)
        getattr(model, model.base_model_prefix).load_state_dict(encoder.state_dict(), strict=False)
        mark = pretrained.fingerprint(pretrained.folder(self.encoder))
        settings = [self.epochs, self.lr, min(self.batch, len(train)), self.length, seed]
        recipe = ["specialise", 1, mark, digest([*train.texts, *train.labels]), *settings]
        weights = kept(recipe, lambda: self._train(model, tokenizer, train, seed))
        model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
        return Tuned(model.eval(), tokenizer, recipe)

    def rows(self, tokenizer: Any, rows: Labelled) -> Batch:
        """Tokens and classes."""
        tokens = tokenizer(list(rows.texts), padding=True, truncation=True, max_length=self.length, return_tensors="pt")
        return {**tokens, "labels": torch.tensor([self.classes.index(label) for label in rows.labels])}

    def batches(self, tokenizer: Any, rows: Labelled) -> list[Batch]:
        """All of them, those of like length together."""
        return [self.rows(tokenizer, chosen(rows, places)) for places in _by_length(rows)]

    def score(self, model: nn.Module, tokenizer: Any, rows: Labelled) -> dict[str, Any]:
        """loss and right, of each sentence in order."""
        loss, right = np.zeros(len(rows)), np.zeros(len(rows))
        with evaluating(model):
            for places in _by_length(rows):
                batch = self.rows(tokenizer, chosen(rows, places))
                found = logits(model, batch)
                loss[places] = F.cross_entropy(found.double(), batch["labels"], reduction="none").numpy()
                right[places] = (found.argmax(1) == batch["labels"]).numpy()
        return {"loss": loss, "right": right}

    def _train(self, model: nn.Module, tokenizer: Any, train: Labelled, seed: int) -> dict[str, Any]:
        size = min(self.batch, len(train))
        per_epoch = len(train) // size

        def batch(index: int) -> Batch:
            epoch, place = divmod(index, per_epoch)
            order = torch.randperm(len(train), generator=stream(seed, f"epoch/{epoch}")).tolist()
            return self.rows(tokenizer, chosen(train, order[place * size : (place + 1) * size]))

        fit(
            model,
            batch,
            lambda module, rows: F.cross_entropy(logits(module, rows), rows["labels"]),
            steps=self.epochs * per_epoch,
            lr=self.lr,
            betas=(0.9, 0.999),
            seed=seed,
        )
        return {name: value.numpy() for name, value in model.state_dict().items()}


def logits(model: nn.Module, batch: Any) -> Tensor:
    """[B, classes]."""
    found: Tensor = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
    return found


def chosen(rows: Labelled, places: Sequence[int]) -> Labelled:
    """Some sentences, in that order."""
    return Labelled([rows.texts[i] for i in places], [rows.labels[i] for i in places])


def _by_length(rows: Labelled) -> list[list[int]]:
    order = sorted(range(len(rows)), key=lambda i: len(rows.texts[i]))
    return [order[i : i + BATCH] for i in range(0, len(order), BATCH)]
