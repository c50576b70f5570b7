"""A small decoder trained by an optimiser on one text, then on another: what is learnt, what is kept, what a step costs."""

from __future__ import annotations

import copy
import email
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from instar import catalogue
from instar.bench.costs import peak_of_steps
from instar.bench.fit import descend
from instar.bench.seeds import initialising, stream
from instar.catalogue import Build
from instar.data.blocks import Blocks
from instar.errors import ShapeError
from instar.interfaces import Data, Items, Monitor, Optimizer, Problem, Workload
from instar.problems.kept import digest
from instar.problems.language import Subject as Decoder
from instar.problems.text import VOCABULARY, TextProblem

_SAME_RATES = 10
"""Steps that are timed together: as many as any common frequency of updates shares."""


@dataclass(frozen=True)
class Texts:
    """One split of both texts."""

    first: Blocks
    second: Blocks


@dataclass
class Subject:
    """A decoder with its optimiser. No module itself: an optimiser is under test, and what it keeps is counted, not traced."""

    model: Decoder
    optimiser: Any
    make: Callable[[], Subject]
    """Another one from the same start."""
    after_first: dict[str, Tensor] = field(default_factory=dict)
    """The weights at the end of the first text."""


class TrainTextProblem(Problem):
    """Bits per byte of the first text when it was learnt, of the second, and of the first again when the second was.

    Args:
        data: the first text, as of `text`. second: the other one; None is the source of Python's own package `email`.
        share: of the steps that go to the second text, at the rate that the first ends with, a tenth of its peak.
        mixer: of the decoder, an address. length, batch, width, depth, heads, test_blocks: as of `text`.

    The rate is a knob of each optimiser, with warm-up and cosine decay over the first text. Raises ShapeError, DataError.
    """

    accepts: ClassVar = {Optimizer: "subject"}

    def __init__(
        self,
        *,
        data: str | list[str] | None = None,
        second: str | None = None,
        share: float = 0.2,
        mixer: str = "softmax",
        length: int = 128,
        batch: int = 8,
        width: int = 128,
        depth: int = 2,
        heads: int = 4,
        test_blocks: int = 32,
    ) -> None:
        if not 0 <= share < 1:
            raise ShapeError(f"train_text expects 0 ≤ share < 1; received {share}.")
        sizes = {"length": length, "batch": batch, "width": width, "depth": depth, "heads": heads, "test_blocks": test_blocks}
        other = second or [str(path) for path in sorted(Path(email.__file__).parent.glob("*.py")) if path.stat().st_size]
        self.texts = TextProblem(data=data, **sizes), TextProblem(data=other, **sizes)  # type: ignore[arg-type]
        self.data, self.second, self.share, self.mixer = data, second, share, mixer
        self.width, self.depth, self.heads, self.length = width, depth, heads, length
        self.tokens_per_step = batch * length

    def load(self, seed: int) -> Data:
        """The same splits for every seed."""
        one, two = (text.load(seed) for text in self.texts)
        facts = {**one.facts, "second": "email, Python's package" if self.second is None else two.facts["name"]}
        train, valid, test = (Texts(getattr(one, name), getattr(two, name)) for name in ("train", "valid", "test"))
        return Data(train, valid, test, digest([one.sha256, two.sha256]), facts)

    def subject(self, build: Build, data: Data, seed: int) -> Subject:
        """The decoder, its weights drawn by the seed, and the optimiser around it."""
        address = catalogue.parse(self.mixer)
        mixer = Build(address.card, catalogue.load(address.card), address.arguments)

        def make() -> Subject:
            with initialising(seed):
                model = Decoder(mixer, vocabulary=VOCABULARY, width=self.width, depth=self.depth, heads=self.heads)
            return Subject(model, build.cls(model, **build.arguments), make)

        return make()

    def fit(
        self,
        subject: Subject,
        train: Texts,
        *,
        steps: int,
        seed: int,
        monitor: Monitor | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        """The first text, then the second with the same optimiser; the steps of both are told in one line."""
        later = round(self.share * steps)
        first, second = self.texts
        folders = [None if checkpoint is None else checkpoint / name for name in ("first", "second")]
        told = _Stopping(monitor)
        descend(
            subject.model, subject.optimiser, first.windows(train.first, seed), first.loss, steps=steps - later, seed=seed,
            monitor=told, checkpoint=folders[0],
        )  # fmt: skip
        subject.after_first = copy.deepcopy(subject.model.state_dict())
        if later and not told.stopped:
            descend(
                subject.model, subject.optimiser, second.windows(train.second, seed), second.loss, steps=later, seed=seed + 1,
                schedule="constant", monitor=_Stopping(monitor, steps - later), checkpoint=folders[1],
            )  # fmt: skip

    def evaluate(self, subject: Subject, split: Texts) -> dict[str, Items]:
        """bits_per_byte@first, @second, and @kept: of the first text at the end."""
        last = copy.deepcopy(subject.model.state_dict())
        text = self.texts[0]
        found = {
            "bits_per_byte@second": text.bits(subject.model, split.second, self.length),
            "bits_per_byte@kept": text.bits(subject.model, split.first, self.length),
        }
        if subject.after_first:
            subject.model.load_state_dict(subject.after_first)
        found["bits_per_byte@first"] = text.bits(subject.model, split.first, self.length)
        subject.model.load_state_dict(last)
        return found

    def costs(self, subject: Subject) -> dict[str, float]:
        """Parameters, the bytes that the optimiser keeps after a step, and the most that is in memory during one."""
        trial = subject.make()
        self._step(trial)()
        parameters = sum(p.numel() for p in trial.model.parameters())
        return {
            "parameters": float(parameters),
            "state_bytes": float(trial.optimiser.state_bytes()),
            "peak_train_bytes": peak_of_steps(lambda: self._step(subject.make())),
        }

    def workloads(self) -> Iterator[Workload]:
        """A training step, averaged over ten."""
        yield Workload("step_seconds", self._steps, units=_SAME_RATES)

    def _steps(self, subject: Subject) -> Callable[[], object]:
        step = self._step(subject.make())

        def call() -> None:
            for _ in range(_SAME_RATES):
                step()

        return call

    def _step(self, trial: Subject) -> Callable[[], None]:
        text = self.texts[0]
        targets = torch.randint(256, (text.batch, text.length), generator=stream(0, "timing"))

        def call() -> None:
            text.loss(trial.model, targets).backward()
            trial.optimiser.step()
            trial.optimiser.zero_grad()

        return call


class _Stopping:
    """A monitor whose steps go on from another stage's, and that remembers whether it was asked to stop."""

    def __init__(self, monitor: Monitor | None, before: int = 0) -> None:
        self.monitor, self.before, self.stopped = monitor, before, False

    def __call__(self, step: int, loss: float) -> bool:
        if self.monitor is not None and self.monitor(self.before + step, loss):
            self.stopped = True
        return self.stopped
