"""Softmax regression in context: documents, labels that a softmax made, and how close a learner is to one step of descent."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from instar.bench.seeds import stream
from instar.catalogue import Build
from instar.errors import ShapeError
from instar.interfaces import Data, InContextLearner, Items, Monitor, Problem
from instar.lab.icl.closeness import documents, sensitivity
from instar.lab.softmax_step import SoftmaxStep
from instar.problems.in_context import make, train_on


class InContextSoftmaxProblem(Problem):
    """A document of n rows with labels n softmax(A x*); a learner says them again from all of them. An item is a document.

    Args:
        width: d. tokens: n. norm: of x*; a larger one makes the labels more of a choice. batch: documents a step, fresh ones.
        test_tasks: in each split.

    Metrics: squared error over that of saying 1 (`error`), squared difference to one step of gradient descent, whose rate was
    tuned on training documents (`distance`, over the same), and the cosine of both sensitivities to the query (`cosine`).
    """

    accepts: ClassVar = {InContextLearner: "learner"}

    def __init__(self, *, width: int = 10, tokens: int = 25, norm: float = 1.0, batch: int = 64, test_tasks: int = 500) -> None:
        if min(width, batch, test_tasks) < 1 or tokens < 2 or not norm > 0:
            raise ShapeError(
                "in_context_softmax expects positive sizes, tokens ≥ 2 and norm > 0; "
                f"received {width}, {batch}, {test_tasks}, {tokens} and {norm}."
            )
        self.width, self.tokens, self.norm, self.batch, self.test_tasks = width, tokens, norm, batch, test_tasks
        self.tokens_per_step = batch * tokens

    def drawn(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Documents [count, n, d] and labels [count, n], float32."""
        A, y = documents(count, self.tokens, self.width, generator, norm=self.norm)
        return A.float(), y.float()

    def load(self, seed: int) -> Data:
        """The same documents for all seeds."""
        splits = {name: self.drawn(self.test_tasks, stream(0, name)) for name in ("valid", "test")}
        facts = {
            **{"name": "generated documents", "item": "document", "train_items": None},
            **{"valid_items": self.test_tasks, "test_items": self.test_tasks},
        }
        made = (self.width, self.tokens, self.norm, self.test_tasks)
        return Data(None, splits["valid"], splits["test"], "/".join(["in_context_softmax/1", *map(str, made)]), facts)

    def learner(self, build: Build, data: Data, seed: int) -> InContextLearner:
        """The learner; a step of descent gets its rate from training documents unless one is set."""
        if issubclass(build.cls, SoftmaxStep) and build.arguments.get("rate") is None:
            return self.step()
        return make(build.cls, build.arguments, {"width": self.width, "examples": self.tokens})

    def step(self) -> SoftmaxStep:
        """The step whose rate is tuned on documents that are no test."""
        A, y = self.drawn(self.test_tasks, stream(0, "rate"))
        return SoftmaxStep.tuned(A, y, A, y)

    def fit(
        self,
        subject: InContextLearner,
        train: None,
        *,
        steps: int,
        seed: int,
        monitor: Monitor | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        """Fresh documents at every step; squared error of all labels."""
        train_on(
            subject,
            lambda index: self.drawn(self.batch, stream(seed, f"data/{index}")),
            lambda found, ys: (found - ys).square().mean(),
            steps=steps,
            seed=seed,
            monitor=monitor,
            checkpoint=checkpoint,
        )

    def evaluate(self, subject: InContextLearner, split: tuple[Tensor, Tensor]) -> dict[str, Items]:
        """Every document."""
        A, y = split
        (said, mine), (other, theirs) = (sensitivity(learner, A, y, A) for learner in (subject, self.step()))
        base = (y - 1).square().double().sum(1).tolist()
        cosine = torch.nn.functional.cosine_similarity(mine, theirs, dim=-1).double().mean(1)
        return {
            "error": Items((said - y).square().double().sum(1).tolist(), base),
            "distance": Items((said - other).square().double().sum(1).tolist(), base),
            "cosine": Items(cosine.tolist(), [1.0] * len(y)),
        }
