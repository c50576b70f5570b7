"""The next state of a real series of several channels, by the number of steps, beside what the last state alone gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from instar.bench.fit import fit
from instar.bench.seeds import stream
from instar.catalogue import Build
from instar.errors import DataError, ShapeError
from instar.interfaces import Data, Items, Monitor, Predictor, Problem, Workload
from instar.problems.language import device_of
from instar.problems.reading import require_reads
from instar.problems.sequence_classes import Sequences
from instar.problems.series_classes import SeriesClassesProblem

STEPS = (1, 2, 4)


@dataclass(frozen=True)
class Windows:
    """Windows of states [N, context + 1, F], and the series, int64 [N], that each is cut from."""

    states: Tensor
    series: Tensor

    def __len__(self) -> int:
        return len(self.states)


class NextStateProblem(Problem):
    """Smooth L1 between the predicted and the real next frame, each channel of mean 0 and variance 1 in training.

    Args:
        data: as of `series_classes`, labels unused; None for BasicMotions, which ships inside the package aeon.
        context: frames that precede a prediction, at most. stride: every so-many-th frame is a state: where all are, the last
            state is nearly the next one. batch, width, depth, heads, lr: of training.

    A window is `context` states and the one behind them; series are cut without overlap, to train as to evaluate. The item is
    the series, whose windows are much alike. Raises ShapeError, DataError, and what `series_classes` raises. Source: Gladstone
    et al. 2024 (arXiv 2406.08862), at small scale.
    """

    accepts: ClassVar = {Predictor: "subject"}

    def __init__(
        self,
        *,
        data: str | list[str] | None = None,
        context: int = 12,
        stride: int = 1,
        batch: int = 32,
        width: int = 64,
        depth: int = 2,
        heads: int = 4,
        lr: float = 1e-3,
    ) -> None:
        if min(context, stride, batch, width, depth, heads) < 1:
            raise ShapeError("next_state takes positive sizes.")
        self.data, self.context, self.stride, self.batch = data, context, stride, batch
        self.width, self.depth, self.heads, self.lr = width, depth, heads, lr
        self.tokens_per_step = batch * context
        self.channels = 1

    def load(self, seed: int) -> Data:
        """The split of `series_classes`, as windows."""
        found = SeriesClassesProblem(data="BasicMotions" if self.data is None else self.data).load(seed)
        train, valid, test = (self._windows(part) for part in (found.train, found.valid, found.test))
        if 0 in map(len, (train, valid, test)):
            raise DataError(f"No series is longer than {(self.context + 1) * self.stride} frames in each split: lower context.")
        counts = {name: len(part.series.unique()) for name, part in (("train", train), ("valid", valid), ("test", test))}
        facts = {**found.facts, "item": "series", **{f"{name}_items": count for name, count in counts.items()}}
        return Data(train, valid, test, found.sha256, facts)

    def _windows(self, part: Sequences) -> Windows:
        length, found, series = self.context + 1, [], list[int]()
        for number, row in enumerate(part.rows):
            for phase in range(self.stride):
                seen = np.asarray(row, dtype=np.float32)[phase :: self.stride]
                cut = [seen[at : at + length] for at in range(0, len(seen) - length + 1, length)]
                found += cut
                series += [number] * len(cut)
        states = torch.from_numpy(np.stack(found)) if found else torch.zeros(0, length, 1)
        return Windows(states, torch.tensor(series, dtype=torch.int64))

    def subject(self, build: Build, data: Data, seed: int) -> Predictor:
        """The predictor at this problem's sizes."""
        require_reads(build, "vectors")
        self.channels = data.train.states.shape[2]
        made: Predictor = build(
            self.width, inputs=self.channels, outputs=self.channels, length=self.context, depth=self.depth, heads=self.heads
        )
        return made

    def fit(
        self,
        subject: Any,
        train: Windows,
        *,
        steps: int,
        seed: int,
        monitor: Monitor | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        """Windows of the training series by chance; the loss is the predictor's own."""

        def batch(step: int) -> tuple[Tensor, Tensor]:
            chosen = train.states[torch.randint(len(train), (self.batch,), generator=stream(seed, f"data/{step}"))]
            return chosen[:, :-1], chosen[:, 1:]

        fit(
            subject,
            batch,
            lambda model, pair: model.loss(*(part.to(device_of(model)) for part in pair)),  # type: ignore[operator]
            steps=steps,
            lr=self.lr,
            betas=(0.9, 0.999),
            groups=subject.groups(self.lr),
            seed=seed,
            monitor=monitor,
            checkpoint=checkpoint,
        )

    def evaluate(self, subject: Any, split: Windows) -> dict[str, Items]:
        """Error of each series by steps, a mean over its windows, and as a share of that of the last state."""
        subject.eval()
        x, target = split.states[:, :-1], split.states[:, 1:]
        last = F.smooth_l1_loss(x, target, reduction="none").mean((1, 2)).double().tolist()
        series = split.series.tolist()
        found = {}
        for steps in STEPS:
            y, _ = subject.predict(x.to(device_of(subject)), steps=steps, generator=stream(0, "predict"))
            errors = F.smooth_l1_loss(y.cpu(), target, reduction="none").mean((1, 2)).double().tolist()
            found[f"smooth_l1@{steps}"] = Items(errors, [1.0] * len(errors)).by(series)
            found[f"of_persistence@{steps}"] = Items(errors, last).by(series)
        return found

    def workloads(self) -> Iterator[Workload]:
        """A training step."""
        yield Workload("step_seconds", self._step)

    def _step(self, subject: Any) -> Callable[[], object]:
        states = torch.randn(self.batch, self.context + 1, self.channels, generator=stream(0, "timing")).to(device_of(subject))

        def call() -> None:
            subject.zero_grad(set_to_none=True)
            subject.loss(states[:, :-1], states[:, 1:]).backward()

        return call
