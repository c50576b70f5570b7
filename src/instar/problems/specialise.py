"""A fine-tuned classifier, from which parts are taken out by a validation split: what that does to the test split."""

from __future__ import annotations

import copy
import inspect
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from instar.bench.seeds import stream
from instar.catalogue import Build
from instar.compression import saved
from instar.compression.pruning.scoring import Validation
from instar.data.sentences import Labelled, sentences
from instar.errors import DataError, ShapeError, UnknownNameError
from instar.interfaces import Data, Items, Monitor, Problem, Transform, Workload
from instar.problems.kept import digest, kept
from instar.problems.tuned_classifier import Batch, Tuned, Tuning, chosen, logits

Labels = Literal["true", "shuffled"]
_TIMED = 128
"""Sentences that are classified against the clock."""


@dataclass(frozen=True)
class Split:
    """What `load` gives as training data: sentences to fine-tune on, and others to choose by."""

    tuned: Labelled
    chosen: Labelled


class Subject:
    """What a transform makes of a fine-tuned model, when that is asked for first: a search takes minutes.

    No module itself: torch's tracker of memory has nothing to follow, since nothing is trained.
    """

    def __init__(self, tune: Callable[[], Tuned], transform: Callable[[nn.Module, Any], Any], chosen: Labelled) -> None:
        self._tune, self._transform, self.chosen = tune, transform, chosen

    @cached_property
    def whole(self) -> Tuned:
        """As it was."""
        return self._tune()

    @cached_property
    def pruned(self) -> nn.Module:
        """With parts taken out."""
        made = copy.deepcopy(self.whole.model)
        self._transform(made, self.whole.tokenizer)
        return made


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
        tuned, searched = chosen(found.train, order[: self.train_items]), chosen(found.train, order[self.train_items :])
        if self.labels == "shuffled":
            places = torch.randperm(len(searched), generator=stream(seed, "labels")).tolist()
            searched = Labelled(searched.texts, [searched.labels[i] for i in places])
        self.tuning = Tuning(self.model, found.classes, self.epochs, self.lr, self.batch, self.length)
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
        return Data(Split(tuned, searched), found.valid, found.test, digest([self.model, *parts]), facts)

    def subject(self, build: Build, data: Data, seed: int) -> Subject:
        """The fine-tuned model of this seed, transformed; a method that draws, draws by the seed too."""
        drawn = {"seed": seed} if "seed" in inspect.signature(build.cls).parameters else {}
        transform = build.cls(**{**drawn, **build.arguments})
        assert isinstance(transform, Transform)
        searched = data.train.chosen

        def apply(model: nn.Module, tokenizer: Any) -> None:
            transform.apply(model, Validation(self.tuning.batches(tokenizer, searched), _losses))

        return Subject(lambda: self.tuning.tuned(data.train.tuned, seed), apply, searched)

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
        whole, pruned = subject.whole, subject.pruned
        found = {}
        for prefix, rows in (("", split), ("search_", subject.chosen)):
            recipe = [*whole.recipe, "scores", digest([*rows.texts, *rows.labels])]
            full = kept(recipe, lambda rows=rows: self.tuning.score(whole.model, whole.tokenizer, rows))  # type: ignore[misc]
            for name, each in (("pruned", self.tuning.score(pruned, whole.tokenizer, rows)), ("full", full)):
                found[f"{prefix}loss@{name}"] = _items(each["loss"])
                if not prefix:
                    found[f"accuracy@{name}"] = _items(each["right"])
        return found

    def costs(self, subject: Subject) -> dict[str, float]:
        """Bytes of the weights on disk, measured, and FLOPs of a batch of sentences as counted; the same as fractions."""
        batch = self._timed(subject)[0]
        bytes_, flops = zip(*(_costs(model, batch) for model in (subject.pruned, subject.whole.model)), strict=True)
        return {
            "file_bytes": bytes_[0],
            "kept_bytes": bytes_[0] / bytes_[1],
            "flops": flops[0],
            "kept_flops": flops[0] / flops[1],
        }

    def workloads(self) -> Iterator[Workload]:
        """Classifying sentences, with parts taken out and without."""
        yield Workload("predict_seconds@pruned", lambda subject: self._predicting(subject, subject.pruned), units=_TIMED)
        yield Workload("predict_seconds@full", lambda subject: self._predicting(subject, subject.whole.model), units=_TIMED)

    def _predicting(self, subject: Subject, model: nn.Module) -> Callable[[], object]:
        batches = self._timed(subject)

        def call() -> object:
            with torch.inference_mode():
                return [model(**batch) for batch in batches]

        return call

    def _timed(self, subject: Subject) -> list[Batch]:
        rows = chosen(subject.chosen, range(min(_TIMED, len(subject.chosen))))
        batches = self.tuning.batches(subject.whole.tokenizer, rows)
        return [{name: value for name, value in batch.items() if name != "labels"} for batch in batches]


def _losses(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(logits(model, batch).float(), batch["labels"], reduction="none")


def _costs(model: nn.Module, batch: Batch) -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as place:
        size = saved.nbytes(saved.save(model, Path(place) / "model"))
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(**batch)
    return float(size), float(counter.get_total_flops())


def _items(values: Any) -> Items:
    return Items([float(value) for value in values], [1.0] * len(values))
