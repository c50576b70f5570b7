"""Boolean functions in context: accuracy by the number of examples, with and without teaching sequences."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from instar.bench.seeds import stream
from instar.catalogue import Build
from instar.errors import ShapeError
from instar.interfaces import Data, InContextLearner, Items, Monitor, Problem
from instar.lab.icl.curriculum import Curriculum
from instar.lab.icl_boolean import TAUGHT, BooleanSampler, Family
from instar.problems.in_context import answers, make, train_on

Split = tuple[Tensor, Tensor, Tensor]
"""xs, ys, and the length of each function's teaching sequence."""


class InContextBooleanProblem(Problem):
    """A test task is a list of inputs in {−1, 1}^D with labels; a learner says each label from the pairs before. An item is
    a task.

    Args:
        family: of `lab.icl_boolean`. width: D. examples: pairs of a task. noise: chance of a flipped label. teaching: chance that
            a training task begins with its function's teaching sequence; taught: whether all test tasks do. With either, terms
            of a DNF have no negations, in training and tests. batch: tasks a step.
        curriculum: training steps until tasks grow from a quarter of their examples, by a part of a feature each, see
            `lab.icl.curriculum`; inputs stay whole. 0 is none.
        test_family: of the test tasks alone, say disjunctions after training on conjunctions; None is that of training.
        test_positives: chance that a test input is made to satisfy (or falsify) a term, where the family has terms; None is
            that of training.
        test_tasks: in each split.

    Metrics: accuracy over all pairs, at the last, and at the pair after the function's teaching sequence would have been shown
    (`accuracy@taught`; of families without one, the last). Trained by the logistic loss over all pairs.
    """

    accepts: ClassVar = {InContextLearner: "learner"}

    def __init__(
        self,
        *,
        family: Family = "conjunction",
        width: int = 10,
        examples: int = 30,
        noise: float = 0.0,
        teaching: float = 0.0,
        taught: bool = False,
        batch: int = 64,
        curriculum: int = 0,
        test_family: Family | None = None,
        test_positives: float | None = None,
        test_tasks: int = 500,
    ) -> None:
        if min(batch, test_tasks) < 1 or examples < 2 or (family in TAUGHT[:2] and examples < width + 3):
            raise ShapeError(
                f"in_context_boolean expects batch ≥ 1 and more examples than a teaching sequence (width + 2); received {batch}, "
                f"{examples} and {width}."
            )
        # A mixture is trained on the functions that can be taught; both kinds of tasks are tested on the same.
        plain = family == (test_family or family) == "dnf" and (teaching > 0 or taught)
        self.sampler = BooleanSampler(width, family, noise, teaching, monotone=plain)
        self.test_sampler = BooleanSampler(width, test_family or family, noise, float(taught), test_positives, plain)
        self.curriculum = Curriculum(width, examples, curriculum)
        if curriculum and teaching:
            raise ShapeError("A curriculum begins with tasks shorter than their teaching sequences: set one of them to 0.")
        self.width, self.examples, self.batch, self.test_tasks = width, examples, batch, test_tasks
        self.tokens_per_step = batch * examples

    def load(self, seed: int) -> Data:
        """The same tasks for all seeds."""
        splits = {}
        for name in ("valid", "test"):
            drawn = self.test_sampler.draw(self.test_tasks, self.examples, stream(0, name))
            splits[name] = (drawn.xs, drawn.ys, drawn.taught)
        facts = {
            **{"name": f"generated Boolean tasks ({self.sampler.family})", "item": "task", "train_items": None},
            **{"valid_items": self.test_tasks, "test_items": self.test_tasks},
        }
        test = self.test_sampler
        made: list[object] = [test.family, test.width, test.noise, test.teaching, self.examples, self.test_tasks]
        made += [] if test.positives is None else [test.positives]
        made += ["monotone"] if test.monotone else []
        return Data(None, splits["valid"], splits["test"], "/".join(["in_context_boolean/1", *map(str, made)]), facts)

    def learner(self, build: Build, data: Data, seed: int) -> InContextLearner:
        """The learner, given what its constructor asks for."""
        return make(build.cls, build.arguments, {"width": self.width, "examples": self.examples})

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
        """Fresh functions and inputs at every step."""

        def tasks(index: int) -> tuple[Tensor, Tensor]:
            _, examples = self.curriculum.sizes(index)
            drawn = self.sampler.draw(self.batch, examples, stream(seed, f"data/{index}"))
            return drawn.xs, drawn.ys

        def loss(found: Tensor, ys: Tensor) -> Tensor:
            return F.softplus(-ys * found).mean()

        train_on(subject, tasks, loss, steps=steps, seed=seed, monitor=monitor, checkpoint=checkpoint)

    def evaluate(self, subject: InContextLearner, split: Split) -> dict[str, Items]:
        """Right answers of every task; an answer of 0 is half right."""
        xs, ys, taught = split
        said = answers(subject, xs, ys)
        right = torch.where(said == 0, 0.5, (said.sign() == ys).double())
        after = torch.where(taught > 0, taught, self.examples - 1).clamp_max(self.examples - 1)
        one = [1.0] * len(ys)
        return {
            "accuracy": Items(right.sum(1).tolist(), [float(self.examples)] * len(ys)),
            "accuracy@last": Items(right[:, -1].tolist(), one),
            "accuracy@taught": Items(right.gather(1, after.unsqueeze(1)).squeeze(1).tolist(), one),
        }
