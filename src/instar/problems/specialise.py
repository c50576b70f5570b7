"""A fine-tuned classifier, from which parts are taken out by a validation split: what that does to the test split."""

from __future__ import annotations

import copy
import inspect
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from instar import extras
from instar.bench.fit import fit
from instar.bench.seeds import initialising, stream
from instar.catalogue import Build
from instar.compression import saved
from instar.compression.pruning.scoring import Validation
from instar.data import pretrained
from instar.data.sentences import Labelled, sentences
from instar.errors import DataError, ShapeError, UnknownNameError
from instar.interfaces import Data, Items, Monitor, Problem, Transform, Workload
from instar.problems.kept import digest, kept
from instar.problems.language import evaluating

Labels = Literal["true", "shuffled"]
_BATCH = 32
"""Sentences in a batch of those that are scored."""
_TIMED = 128


@dataclass(frozen=True)
class Split:
    """What `load` gives as training data: sentences to fine-tune on, and others to choose by."""

    tuned: Labelled
    chosen: Labelled


@dataclass(frozen=True)
class Models:
    """A fine-tuned classifier as it was, and with parts taken out."""

    whole: nn.Module
    pruned: nn.Module
    tokenizer: Any
    recipe: list[Any]
    """What decides the whole one."""


class Subject:
    """What a transform makes of a fine-tuned model, when that is asked for first: a search takes minutes.

    No module itself: torch's tracker of memory has nothing to follow, since nothing is trained.
    """

    def __init__(self, make: Callable[[], Models], chosen: Labelled) -> None:
        self._make, self.chosen = make, chosen

    @cached_property
    def models(self) -> Models:
        return self._make()


class SpecialiseProblem(Problem):
    """Test loss and accuracy of a classifier after parts were taken out of it by the loss on other sentences, and before.

    Args:
        data: sst2, trec, … or a CSV, as `data.sentences`. model: an encoder, as `data.pretrained` takes it.
        train_items, search_items: sentences to fine-tune on, and to choose by; both from the training part, drawn by the seed.
        labels: shuffled permutes those of the sentences to choose by: what is gained then is noise of the selection.
        epochs, lr, batch, length: of the fine-tuning by AdamW (decay 0.01, cosine to a tenth); length in tokens.

    One fine-tuned model for each seed, kept in the cache, so that all methods take parts out of the same. Raises DataError,
    ShapeError, and what opening data and models raises.
    """

    accepts: ClassVar = {Transform: "subject"}
    tokens_per_step = 1

    def __init__(
        self,
        *,
        data: str = "sst2",
        model: str = "all-MiniLM-L6-v2",
        train_items: int = 1600,
        search_items: int = 400,
        labels: Labels = "true",
        epochs: int = 2,
        lr: float = 5e-5,
        batch: int = 16,
        length: int = 48,
    ) -> None:
        if min(train_items, search_items, batch) < 2 or epochs < 1 or length < 4 or not 0 < lr < 1:
            raise ShapeError(
                "specialise expects train_items, search_items and batch of 2 or more, epochs of 1, length of 4 or more and "
                f"0 < lr < 1; received {train_items}, {search_items}, {batch}, {epochs}, {length} and {lr}."
            )
        if labels not in ("true", "shuffled"):
            raise UnknownNameError.among("setting of labels", labels, ("true", "shuffled"))
        self.data, self.model, self.train_items, self.search_items, self.labels = data, model, train_items, search_items, labels
        self.epochs, self.lr, self.batch, self.length = epochs, lr, batch, length

    def load(self, seed: int) -> Data:
        """The same validation and test sentences for every seed; it draws those to train on and to choose by."""
        found = sentences(self.data)
        wanted = self.train_items + self.search_items
        if len(found.train) < wanted:
            raise DataError(f"{found.name} has {len(found.train)} training sentences; {wanted} are asked for.")
        order = torch.randperm(len(found.train), generator=stream(seed, "train"))[:wanted].tolist()
        tuned, chosen = _rows(found.train, order[: self.train_items]), _rows(found.train, order[self.train_items :])
        if self.labels == "shuffled":
            places = torch.randperm(len(chosen), generator=stream(seed, "labels")).tolist()
            chosen = Labelled(chosen.texts, [chosen.labels[i] for i in places])
        self._classes = found.classes
        facts = {
            "name": found.name,
            "item": "sentence",
            "train_items": self.train_items,
            "search_items": self.search_items,
            "valid_items": len(found.valid),
            "test_items": len(found.test),
            "model": self.model,
            "labels": self.labels,
        }
        parts = [p for part in (found.train, found.valid, found.test) for p in (*part.texts, *part.labels)]
        return Data(Split(tuned, chosen), found.valid, found.test, digest([self.model, *parts]), facts)

    def subject(self, build: Build, data: Data, seed: int) -> Subject:
        """The fine-tuned model of this seed, transformed; a method that draws, draws by the seed too."""
        drawn = {"seed": seed} if "seed" in inspect.signature(build.cls).parameters else {}
        transform = build.cls(**{**drawn, **build.arguments})
        assert isinstance(transform, Transform)
        chosen = data.train.chosen
        order = sorted(range(len(chosen)), key=lambda i: len(chosen.texts[i]))

        def make() -> Models:
            whole, tokenizer, recipe = self.tuned(data.train.tuned, seed)
            batches = [self._batch(tokenizer, _rows(chosen, order[i : i + _BATCH])) for i in range(0, len(order), _BATCH)]
            pruned = copy.deepcopy(whole)
            transform.apply(pruned, Validation(batches, _losses))
            return Models(whole, pruned, tokenizer, recipe)

        return Subject(make, chosen)

    def tuned(self, train: Labelled, seed: int) -> tuple[nn.Module, Any, list[Any]]:
        """(classifier fine-tuned on these sentences, tokenizer, what decides it)."""
        encoder, tokenizer = pretrained.load(self.model, "encoder")
        transformers = extras.require("transformers", "models")
        config = copy.deepcopy(encoder.config)
        config.num_labels = len(self._classes)
        with initialising(seed):
            model = transformers.AutoModelForSequenceClassification.from_config(config)
        getattr(model, model.base_model_prefix).load_state_dict(encoder.state_dict(), strict=False)
        mark = pretrained.fingerprint(pretrained.folder(self.model))
        settings = [self.epochs, self.lr, self.batch, self.length, seed]
        recipe = ["specialise", 1, mark, digest([*train.texts, *train.labels]), *settings]
        weights = kept(recipe, lambda: self._train(model, tokenizer, train, seed))
        model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
        return model.eval(), tokenizer, recipe

    def fit(
        self,
        subject: Subject,
        train: Split,
        *,
        steps: int,
        seed: int,
        monitor: Monitor | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        """Nothing: the fine-tuning and the search are part of the evaluation."""
        for step in sorted({max(1, steps - 1), steps}):  # twice, so that calibration sees a step that takes no time
            if monitor is not None:
                monitor(step, 0.0)

    def evaluate(self, subject: Subject, split: Labelled) -> dict[str, Items]:
        """Loss and accuracy of every sentence, with parts taken out (`pruned`) and without (`full`); `search_loss` is of the
        sentences that were chosen by.
        """
        models = subject.models
        found = {}
        for prefix, rows in (("", split), ("search_", subject.chosen)):
            scores = {
                "pruned": self._score(models.pruned, models.tokenizer, rows),
                "full": kept(
                    [*models.recipe, "scores", digest([*rows.texts, *rows.labels])],
                    lambda rows=rows: self._score(models.whole, models.tokenizer, rows),  # type: ignore[misc]
                ),
            }
            for name, each in scores.items():
                found[f"{prefix}loss@{name}"] = _items(each["loss"])
                if not prefix:
                    found[f"accuracy@{name}"] = _items(each["right"])
        return found

    def costs(self, subject: Subject) -> dict[str, float]:
        """Bytes of the weights on disk, measured, and FLOPs of a batch of sentences as counted; the same as fractions."""
        models = subject.models
        batch = self._timed(subject)[0]
        bytes_, flops = zip(*(_costs(model, batch) for model in (models.pruned, models.whole)), strict=True)
        return {
            "file_bytes": bytes_[0],
            "kept_bytes": bytes_[0] / bytes_[1],
            "flops": flops[0],
            "kept_flops": flops[0] / flops[1],
        }

    def workloads(self) -> Iterator[Workload]:
        """Classifying sentences, with parts taken out and without."""
        yield Workload("predict_seconds@pruned", lambda subject: self._predicting(subject, subject.models.pruned), units=_TIMED)
        yield Workload("predict_seconds@full", lambda subject: self._predicting(subject, subject.models.whole), units=_TIMED)

    def _predicting(self, subject: Subject, model: nn.Module) -> Callable[[], object]:
        batches = self._timed(subject)

        def call() -> object:
            with torch.inference_mode():
                return [model(**batch) for batch in batches]

        return call

    def _timed(self, subject: Subject) -> list[dict[str, Tensor]]:
        order = sorted(range(min(_TIMED, len(subject.chosen))), key=lambda i: len(subject.chosen.texts[i]))
        parts = [_rows(subject.chosen, order[i : i + _BATCH]) for i in range(0, len(order), _BATCH)]
        batches = [self._batch(subject.models.tokenizer, part) for part in parts]
        return [{name: value for name, value in batch.items() if name != "labels"} for batch in batches]

    def _batch(self, tokenizer: Any, rows: Labelled) -> dict[str, Tensor]:
        tokens = tokenizer(list(rows.texts), padding=True, truncation=True, max_length=self.length, return_tensors="pt")
        return {**tokens, "labels": torch.tensor([self._classes.index(label) for label in rows.labels])}

    def _score(self, model: nn.Module, tokenizer: Any, rows: Labelled) -> dict[str, Any]:
        """loss and right, of each sentence in order."""
        order = sorted(range(len(rows)), key=lambda i: len(rows.texts[i]))
        losses, right = np.zeros(len(rows)), np.zeros(len(rows))
        with evaluating(model):
            for start in range(0, len(order), _BATCH):
                places = order[start : start + _BATCH]
                batch = self._batch(tokenizer, _rows(rows, places))
                logits = _logits(model, batch)
                losses[places] = F.cross_entropy(logits.double(), batch["labels"], reduction="none").numpy()
                right[places] = (logits.argmax(1) == batch["labels"]).numpy()
        return {"loss": losses, "right": right}

    def _train(self, model: nn.Module, tokenizer: Any, train: Labelled, seed: int) -> dict[str, Any]:
        per_epoch = len(train) // self.batch

        def batch(index: int) -> dict[str, Tensor]:
            epoch, place = divmod(index, per_epoch)
            order = torch.randperm(len(train), generator=stream(seed, f"epoch/{epoch}")).tolist()
            return self._batch(tokenizer, _rows(train, order[place * self.batch : (place + 1) * self.batch]))

        fit(
            model,
            batch,
            lambda module, rows: F.cross_entropy(_logits(module, rows), rows["labels"]),
            steps=self.epochs * per_epoch,
            lr=self.lr,
            betas=(0.9, 0.999),
            seed=seed,
        )
        return {name: value.numpy() for name, value in model.state_dict().items()}


def _logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    found: Tensor = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
    return found


def _losses(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(_logits(model, batch).float(), batch["labels"], reduction="none")


def _costs(model: nn.Module, batch: dict[str, Tensor]) -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as place:
        size = saved.nbytes(saved.save(model, Path(place) / "model"))
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(**batch)
    return float(size), float(counter.get_total_flops())


def _rows(rows: Labelled, places: Sequence[int]) -> Labelled:
    return Labelled([rows.texts[i] for i in places], [rows.labels[i] for i in places])


def _items(values: Any) -> Items:
    return Items([float(value) for value in values], [1.0] * len(values))
