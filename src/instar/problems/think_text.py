"""Byte-level language modelling by predictors: bits per byte by the number of steps that are spent on each byte."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from instar.bench.fit import fit
from instar.bench.seeds import stream
from instar.catalogue import Build
from instar.data.blocks import Blocks
from instar.interfaces import Data, Items, Monitor, Predictor, Workload
from instar.problems.language import device_of
from instar.problems.reading import require_reads
from instar.problems.text import IGNORED, VOCABULARY, TextProblem, evaluation_windows, preceding

STEPS = (1, 2, 3, 6)


class ThinkTextProblem(TextProblem):
    """bits per byte after 1, 2, 3 and 6 steps, whatever a predictor was trained with.

    Arguments and data are those of `text`, with smaller sizes, since a thinking step costs several passes. Starts and noise of
    evaluation are drawn from one stream for all methods. Raises DataError for a predictor that does not read tokens.
    """

    accepts: ClassVar = {Predictor: "subject"}

    def __init__(
        self,
        *,
        data: str | list[str] | None = None,
        length: int = 32,
        batch: int = 32,
        width: int = 64,
        depth: int = 2,
        heads: int = 4,
        lr: float = 2.4e-3,
        test_blocks: int = 8,
    ) -> None:
        super().__init__(
            data=data, length=length, batch=batch, width=width, depth=depth, heads=heads, lr=lr, test_blocks=test_blocks
        )

    def subject(self, build: Build, data: Data, seed: int) -> Predictor:
        """The predictor at this problem's sizes."""
        require_reads(build, "tokens")
        made: Predictor = build(self.width, vocabulary=VOCABULARY, depth=self.depth, heads=self.heads)
        return made

    def fit(
        self,
        subject: Any,
        train: Blocks,
        *,
        steps: int,
        seed: int,
        monitor: Monitor | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        """Random windows as in `text`; loss and parameter groups are the predictor's own."""
        fit(
            subject,
            self.windows(train, seed),
            lambda model, targets: model.loss(preceding(targets), targets),  # type: ignore[operator]
            steps=steps,
            lr=self.lr,
            betas=(0.9, 0.999),
            groups=subject.groups(self.lr),
            seed=seed,
            monitor=monitor,
            checkpoint=checkpoint,
        )

    def evaluate(self, subject: Any, split: Blocks) -> dict[str, Items]:
        """Bits of every block, by steps."""
        training = subject.training
        subject.eval()
        try:
            return {
                f"bits_per_byte@{steps}": Items(self._bits(subject, split, steps).tolist(), split.length.tolist())
                for steps in STEPS
            }
        finally:
            subject.train(training)

    def _bits(self, subject: Predictor, split: Blocks, steps: int) -> np.ndarray:
        bits, generator = np.zeros(len(split)), stream(0, "think")
        for chosen, targets in evaluation_windows(split, self.length):
            targets = targets.to(device_of(subject))
            logits, _ = subject.predict(preceding(targets), steps=steps, generator=generator)
            nats = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="none")
            np.add.at(bits, chosen, nats.view(targets.shape).double().sum(1).cpu().numpy() / math.log(2))
        return bits

    def costs(self, subject: Any) -> dict[str, float]:
        """None beside those of any module."""
        return {}

    def workloads(self) -> Iterator[Workload]:
        """A training step, and a prediction with the steps of training."""
        yield Workload("train_tokens_per_second", self._step, units=self.tokens_per_step)
        yield Workload("predict_tokens_per_second", self._predict, units=self.tokens_per_step)

    def _targets(self, subject: Predictor) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.randint(256, (self.batch, self.length), generator=generator).to(device_of(subject))

    def _step(self, subject: Any) -> Callable[[], object]:
        targets = self._targets(subject)

        def call() -> None:
            subject.zero_grad(set_to_none=True)
            subject.loss(preceding(targets), targets).backward()

        return call

    def _predict(self, subject: Any) -> Callable[[], object]:
        inputs = preceding(self._targets(subject))
        return lambda: subject.predict(inputs, steps=subject.steps)
