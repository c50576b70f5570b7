"""An autoencoder of digits: the small experiment on which optimisers are told apart in seconds."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from instar.bench.costs import peak_of_steps
from instar.bench.seeds import initialising, stream
from instar.catalogue import Build
from instar.data.images import images
from instar.errors import DataError, DivergedError, ShapeError
from instar.interfaces import Data, Items, Monitor, Optimizer, Problem, Workload
from instar.problems.kept import digest

_LEAST = 100


@dataclass
class Subject:
    """A fresh model and its optimiser. No module itself: an optimiser is under test, and its memory is counted, not traced."""

    model: nn.Module
    optimiser: Any
    make: Callable[[], Subject]
    """Another one from the same start."""
    seen: Tensor | None = None
    """What it was trained on."""


class AutoencodeProblem(Problem):
    """Squared error of an image, summed over its pixels in [0, 1], after a multilayer perceptron has made it few numbers.

    Args:
        data: None for scikit-learn's digits, mnist, or an `.npz` file of images; see `data.images`.
        hidden: widths of the two outer hidden layers, as 256, then a quarter of it, then `code` numbers, and back. code: of them.
        batch: images a step. One constant rate: it is a knob of each optimiser.

    A fifth of the images is the test split, a tenth the validation split. A step is one batch of an epoch in random order, the
    same for all methods. Raises ShapeError, DataError, MissingExtraError.
    """

    accepts: ClassVar = {Optimizer: "subject"}

    def __init__(self, *, data: str | None = None, hidden: int = 256, code: int = 16, batch: int = 100) -> None:
        if min(code, batch) < 1 or hidden < 4:
            raise ShapeError(f"autoencode expects code and batch ≥ 1 and hidden ≥ 4; received {code}, {batch} and {hidden}.")
        self.data, self.hidden, self.code, self.batch = data, hidden, code, batch
        self.tokens_per_step = batch

    def load(self, seed: int) -> Data:
        """Images [N, pixels] in [0, 1]; the same split for every seed."""
        found = images(self.data)
        rows = torch.from_numpy(found.pixels.reshape(len(found.pixels), -1)).float()
        if len(rows) < _LEAST:
            raise DataError(f"{found.name} has {len(rows)} images; at least {_LEAST} are needed.")
        rows = rows / rows.max().clamp_min(1.0)
        order = torch.randperm(len(rows), generator=stream(0, "split"))
        test, valid = len(rows) // 5, len(rows) // 10
        parts = rows[order[:test]], rows[order[test : test + valid]], rows[order[test + valid :]]
        facts = {
            "name": found.name,
            "item": "image",
            "train_items": len(parts[2]),
            "valid_items": valid,
            "test_items": test,
        }
        return Data(parts[2], parts[1], parts[0], digest(part.numpy() for part in parts), facts)

    def subject(self, build: Build, data: Data, seed: int) -> Subject:
        """The perceptron 64-256-64-16-64-256-64 (for digits of 64 pixels), and the optimiser around it."""
        pixels, quarter = data.train.shape[1], self.hidden // 4
        sizes = (pixels, self.hidden, quarter, self.code, quarter, self.hidden, pixels)

        def make() -> Subject:
            with initialising(seed):
                layers: list[nn.Module] = []
                for inputs, outputs in itertools.pairwise(sizes):
                    layers += [nn.Linear(inputs, outputs), nn.ReLU()]
            model = nn.Sequential(*layers[:-1])
            return Subject(model, build.cls(model, **build.arguments), make)

        return make()

    def fit(
        self,
        subject: Subject,
        train: Tensor,
        *,
        steps: int,
        seed: int,
        monitor: Monitor | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        """The loss is the squared error of an image, mean over the batch. It takes seconds, and begins again when stopped."""
        size = min(self.batch, len(train))
        epoch: dict[int, Tensor] = {}
        subject.model.train()
        for step in range(steps):
            number, place = divmod(step, len(train) // size)
            if number not in epoch:
                epoch = {number: torch.randperm(len(train), generator=stream(seed, f"epoch/{number}"))}
            loss = _errors(subject.model, train[epoch[number][place * size : (place + 1) * size]]).mean()
            value = float(loss.detach())
            if not value < 1e6:
                raise DivergedError(f"The error is {value} at step {step + 1} of {steps}; a smaller rate may help.")
            loss.backward()
            subject.optimiser.step()
            subject.optimiser.observe(value)
            subject.optimiser.zero_grad()
            if monitor is not None and monitor(step + 1, value):
                break
        subject.seen = train

    def evaluate(self, subject: Subject, split: Tensor) -> dict[str, Items]:
        """The error of each image of the split, and of what it was trained on."""
        subject.model.eval()
        with torch.no_grad():
            found = {"error": _errors(subject.model, split)}
            if subject.seen is not None:
                found["train_error"] = _errors(subject.model, subject.seen)
        return {name: Items(errors.double().tolist(), [1.0] * len(errors)) for name, errors in found.items()}

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
        """A step with its forward and backward pass, averaged over as many as any frequency of updates shares."""
        yield Workload("step_seconds", self._steps, units=10)

    def _steps(self, subject: Subject) -> Callable[[], object]:
        step = self._step(subject.make())

        def call() -> None:
            for _ in range(10):
                step()

        return call

    def _step(self, trial: Subject) -> Callable[[], None]:
        pixels = next(trial.model.parameters()).shape[1]
        rows = torch.rand(self.batch, pixels, generator=torch.Generator().manual_seed(0))

        def call() -> None:
            _errors(trial.model, rows).mean().backward()
            trial.optimiser.step()
            trial.optimiser.zero_grad()

        return call


def _errors(model: nn.Module, rows: Tensor) -> Tensor:
    """[N]: the squared error of each image, summed over its pixels."""
    return (model(rows) - rows).square().sum(1)
