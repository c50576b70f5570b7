"""A language model comes in a new version: is its task answered as well as before, item by item?"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from instar.adapters import LoRA
from instar.adapters.attached import own_layers
from instar.anatomy import anatomy
from instar.bench.seeds import initialising, stream
from instar.catalogue import Build
from instar.compat.distilling import batch, nats, train
from instar.compat.teacher import Row, logits
from instar.data import pretrained
from instar.data.sentences import Labelled, Sentences, sentences
from instar.errors import DataError, ShapeError
from instar.gate.flips import flips
from instar.interfaces import Answering, Data, Items, Monitor, Problem, Updater, Versions
from instar.problems.generate_text import Writer
from instar.problems.kept import Arrays, digest, kept
from instar.receipts.fingerprint import fingerprint

MODELS = Path(__file__).with_name("update_model_versions")
"""The two versions that come with the package (`instar.problems.update_model_gpt` trains them)."""
TASK = "task"
_SCORED = 256
"""Candidate texts at a time."""
_ANSWERS = ("valid", "test")


@dataclass(frozen=True)
class Asked:
    """Sentences, what they may be, and which of it they are."""

    part: str
    texts: Sequence[str]
    choices: Sequence[Sequence[str]]
    right: Sequence[int]


class Updating:
    """Both versions of a model, the strategy, and how the task is answered once it has run."""

    def __init__(self, updater: Updater, versions: Versions, before: Mapping[str, NDArray[np.int64]]) -> None:
        self.updater, self.versions, self.before = updater, versions, before
        self.answering: Answering | None = None


class UpdateModelProblem(Problem):
    """A small language model names the intent of a sentence; its base is replaced, and the adapter is brought along.

    The sentence and its label, in words, are one text. Both versions get a LoRA adapter on all linear layers, trained on the same
    texts with the same recipe (cross-entropy over the whole text, `task_steps` of `batch` rows); then a strategy makes of the new
    one what shall be shipped, from the same texts. The answer is the likeliest of `choices` labels by the sum of their tokens'
    log-probabilities. Items are compared with what the old version answered.

    Args:
        data: trec, sst2, clinc150, custrev, subj, or a CSV file with the columns text and label. classes: most labels, spread
            over the alphabet.
        old, new: causal models, as `data.pretrained` takes them, of one tokenizer; by default two small GPTs that differ in what
            they read, for how long, and where they began.
        train_items: most sentences to train on, drawn by the seed. test_items: most of the validation and the test part.
        choices: labels to choose from, the right one among others drawn by the sentence's hash. r: rank; alpha is 2r, as in the
        paper. task_lr: peak rate. length: most tokens of a text.

    Adapters of a seed, and what the old version answers, are kept in the user's cache. Raises DataError, ShapeError, and what
    opening data and models raises.
    """

    accepts: ClassVar = {Updater: "updating"}

    def __init__(
        self,
        *,
        data: str = "clinc150",
        classes: int = 24,
        old: str | None = None,
        new: str | None = None,
        train_items: int = 480,
        test_items: int = 720,
        choices: int = 8,
        r: int = 16,
        task_steps: int = 300,
        task_lr: float = 5e-3,
        batch: int = 16,
        length: int = 64,
    ) -> None:
        sizes = {"train_items": train_items, "test_items": test_items, "choices": choices, "classes": classes}
        if min(sizes.values()) < 2 or min(r, task_steps, batch) < 1 or length < 8 or not 0 < task_lr < 1:
            raise ShapeError(
                f"update_model expects {', '.join(sizes)} of 2 or more, positive r, task_steps and batch, length of 8 or more, "
                f"and 0 < task_lr < 1; received {sizes}, {r}, {task_steps}, {batch}, {length}, {task_lr}."
            )
        if (old is None) != (new is None):
            raise DataError("Give old= and new= together: two versions of one model.")
        self.data, self.classes, self.old, self.new, self.train_items = data, classes, old, new, train_items
        self.test_items, self.choices, self.r, self.task_steps = test_items, choices, r, task_steps
        self.task_lr, self.batch, self.length = task_lr, batch, length
        self.tokens_per_step = batch * length

    def load(self, seed: int) -> Data:
        """The same validation and test sentences for every seed; it draws those for training."""
        found = _some(sentences(self.data), self.classes)
        drawn = torch.randperm(len(found.train), generator=stream(seed, "train"))[: self.train_items].sort().values.tolist()
        train = Labelled([found.train.texts[i] for i in drawn], [found.train.labels[i] for i in drawn])
        valid, test = (
            self._asked(part, which, found.classes) for part, which in zip(_ANSWERS, (found.valid, found.test), strict=True)
        )
        facts = {
            **{"name": found.name, "item": "sentence", "train_items": len(train)},
            **{"valid_items": len(valid.texts), "test_items": len(test.texts), "classes": len(found.classes)},
        }
        parts = [found.train.texts, found.train.labels, *(x for one in (valid, test) for x in (one.texts, *one.choices))]
        return Data(train, valid, test, digest(text for part in parts for text in part), facts)

    def updating(self, build: Build, data: Data, seed: int) -> Updating:
        """Both versions with their adapters for the task, and the strategy."""
        sources = [str(given) if given else str(MODELS / name) for given, name in ((self.old, "old"), (self.new, "new"))]
        (old, tokenizer), (new, _) = (pretrained.load(source, "causal") for source in sources)
        self._writer = Writer(tokenizer, self.length)
        rows = [self._writer.row(text, _words(label)) for text, label in zip(data.train.texts, data.train.labels, strict=True)]
        updater = build.cls(**build.arguments)
        assert isinstance(updater, Updater)
        before = self._prepare(old, new, rows, data, seed)
        return Updating(updater, Versions(old, new, rows, self._writer.fill), before)

    def fit(
        self,
        subject: Updating,
        train: Labelled,
        *,
        steps: int,
        seed: int,
        monitor: Monitor | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        """The strategy's own training, resumed to the bit."""
        told = False

        def tell(step: int, loss: float) -> bool | None:
            nonlocal told
            told = True
            return None if monitor is None else monitor(step, loss)

        subject.answering = subject.updater.update(subject.versions, steps=steps, seed=seed, monitor=tell, folder=checkpoint)
        if not told and monitor is not None:  # there was nothing to train
            monitor(steps, 0.0)

    def evaluate(self, subject: Updating, split: Asked) -> dict[str, Items]:
        """Sentence by sentence: right, and compared with what the old version answered."""
        assert subject.answering is not None
        said, before = self._answers(subject.answering, split), subject.before[split.part]
        right = np.array(split.right)
        flipped = flips((before == right)[None].astype(float), (said == right).astype(float))
        figures = {
            "accuracy": flipped.after,
            "nfr": flipped.negative,
            "nfr_mc": (said != right) & (said != before),
            "pfr": flipped.positive,
            "old_accuracy": flipped.before,
        }
        ones = [1.0] * len(right)
        return {name: Items(values.astype(float).tolist(), ones) for name, values in figures.items()}

    def _prepare(
        self, old: nn.Module, new: nn.Module, rows: Sequence[Row], data: Data, seed: int
    ) -> dict[str, NDArray[np.int64]]:
        """Give both versions their adapters; what the old one answers, by part."""
        recipe = [
            *("update_model", 1, fingerprint(old), fingerprint(new), data.sha256, seed, torch.__version__),
            *(self.train_items, self.r, self.task_steps, self.task_lr, self.batch, self.length),
        ]
        for model in (old, new):
            with initialising(seed):
                layers = [part.name for block in anatomy(model).blocks for part in block.linears]
                LoRA(r=self.r, alpha=2.0 * self.r, lr=self.task_lr).attach(model, layers, name=TASK)

        def make() -> Arrays:
            made: dict[str, NDArray[Any]] = {}
            for name, model in (("old", old), ("new", new)):
                self._train(Versions(model, model, rows, self._writer.fill), seed)
                made |= {f"{name}/{key}": tensor.numpy() for key, tensor in _tensors(model).items()}
            answering = Answering(lambda ids, mask: logits(old, ids, mask))
            return made | {
                part: self._answers(answering, split) for part, split in zip(_ANSWERS, (data.valid, data.test), strict=True)
            }

        found = kept(recipe, make)
        for name, model in (("old", old), ("new", new)):
            for key, tensor in _tensors(model).items():
                tensor.copy_(torch.from_numpy(np.array(found[f"{name}/{key}"])))
        return {part: np.asarray(found[part]) for part in _ANSWERS}

    def _train(self, versions: Versions, seed: int) -> None:
        portion = functools.partial(batch, versions, size=self.batch, seed=seed)
        train(versions.new, portion, nats, steps=self.task_steps, seed=seed, lr=None, monitor=None, folder=None)

    def _asked(self, part: str, found: Labelled, classes: Sequence[str]) -> Asked:
        """Sentences spread over the part, each with the right label among others."""
        places = [i * len(found) // min(self.test_items, len(found)) for i in range(min(self.test_items, len(found)))]
        texts, labels = [found.texts[i] for i in places], [found.labels[i] for i in places]
        options = []
        for text, label in zip(texts, labels, strict=True):
            others = sorted(set(classes) - {label}, key=lambda one: hashlib.sha256(f"{text}\n{one}".encode()).digest())
            options.append(sorted([label, *others[: self.choices - 1]]))
        right = [one.index(label) for one, label in zip(options, labels, strict=True)]
        return Asked(part, texts, [[_words(one) for one in each] for each in options], right)

    def _answers(self, answering: Answering, split: Asked) -> NDArray[np.int64]:
        """The place of the likeliest choice of each sentence; of equal ones the first."""
        rows = [self._writer.row(text, one) for text, each in zip(split.texts, split.choices, strict=True) for one in each]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]) + len(rows[i][1]))
        scores = torch.zeros(len(rows), dtype=torch.float64)
        for start in range(0, len(rows), _SCORED):
            chosen = order[start : start + _SCORED]
            ids, mask, targets = self._writer.batch([rows[i] for i in chosen])
            wanted = targets[:, 1:]
            said = answering.logits(ids, mask)[:, :-1].float().log_softmax(-1).gather(-1, wanted.clamp(min=0)[..., None])[..., 0]
            scores[chosen] = (said * (wanted >= 0)).double().sum(1)
        ends = np.cumsum([len(each) for each in split.choices])[:-1].tolist()
        return np.array([int(one.argmax()) for one in scores.tensor_split(ends)], dtype=np.int64)


def _some(found: Sentences, classes: int) -> Sentences:
    """The sentences of so many of the labels, spread over their alphabet."""
    known = found.classes
    chosen = {known[i * len(known) // min(classes, len(known))] for i in range(min(classes, len(known)))}

    def part(rows: Labelled) -> Labelled:
        kept = [place for place, label in enumerate(rows.labels) if label in chosen]
        return Labelled([rows.texts[i] for i in kept], [rows.labels[i] for i in kept])

    return Sentences(found.name, part(found.train), part(found.valid), part(found.test))


def _words(label: str) -> str:
    return label.replace("_", " ")


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {
        f"{path}/{name}": tensor
        for path, layer in own_layers(model, TASK).items()
        for name, tensor in layer.adapters[TASK].state_dict().items()
    }
