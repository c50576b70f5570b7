"""Regression in context: does a learner answer like least squares, gradient descent, or nothing known?"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from instar import catalogue
from instar.bench.seeds import stream
from instar.catalogue import Build
from instar.errors import ShapeError
from instar.interfaces import Data, InContextLearner, Items, Monitor, Problem
from instar.lab.icl.contexts import answering
from instar.lab.icl.curriculum import Curriculum
from instar.lab.icl.tasks import Family, TaskSampler

REFERENCES = {
    "ols": "least_squares",
    "ridge": "least_squares:ridge_half",
    "bayes": "bayes_linear",
    "gd": "gradient_descent",
    "neighbours": "nearest_neighbours",
}
"""Condition of the metric `distance` -> address."""


class InContextProblem(Problem):
    """A test task is a list of pairs; the learner says each y from the pairs before it. An item is a task.

    Args:
        family: of functions, see `lab.icl.tasks`. width: D. examples: pairs of a task. noise, prior: σ and τ. scale: of the
            inputs of the test tasks alone, a covariate shift. batch: tasks a step, fresh ones. curriculum: training steps until
            tasks grow by a feature, see `lab.icl.curriculum`; 0 is none. test_tasks: in each split.

    Metrics: squared error over that of answering 0, over all pairs, over those with fewer examples than unknowns
    (`error@few`), at the last (`error@last`); and the squared difference to references by D, with 0 < n < D (`distance`).
    """

    accepts: ClassVar = {InContextLearner: "learner"}

    def __init__(
        self,
        *,
        family: Family = "linear",
        width: int = 4,
        examples: int = 10,
        noise: float = 0.0,
        prior: float = 1.0,
        scale: float = 1.0,
        batch: int = 64,
        curriculum: int = 0,
        test_tasks: int = 1000,
    ) -> None:
        if min(batch, test_tasks) < 1 or examples < 2 or width < 2:
            raise ShapeError(f"in_context expects batch ≥ 1, examples and width ≥ 2; received {batch}, {examples}, {width}.")
        self.sampler = TaskSampler(width, family, noise, prior)
        self.shifted = TaskSampler(width, family, noise, prior, scale=scale)
        self.curriculum = Curriculum(width, examples, curriculum)
        self.width, self.examples, self.batch, self.test_tasks = width, examples, batch, test_tasks
        self.given = {"width": width, "examples": examples, "noise": noise, "prior": prior}
        self.tokens_per_step = batch * examples

    def load(self, seed: int) -> Data:
        """Tasks for validation and test; training tasks are made as they are needed. The same for all seeds."""
        splits = {}
        for name in ("valid", "test"):
            drawn = self.shifted.draw(self.test_tasks, self.examples, stream(0, name))
            splits[name] = (drawn.xs, drawn.ys)
        facts = {
            **{"name": f"generated tasks ({self.sampler.family})", "item": "task", "train_items": None},
            **{"valid_items": self.test_tasks, "test_items": self.test_tasks},
        }
        made = (self.sampler.family, *self.given.values(), self.shifted.scale, self.test_tasks)
        return Data(None, splits["valid"], splits["test"], "/".join(["in_context/1", *map(str, made)]), facts)

    def learner(self, build: Build, data: Data, seed: int) -> InContextLearner:
        """The learner, given what its constructor asks for."""
        return make(build.cls, build.arguments, self.given)

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
        """Fresh tasks at every step; the mean squared error over all pairs."""

        def tasks(index: int) -> tuple[Tensor, Tensor]:
            features, examples = self.curriculum.sizes(index)
            drawn = self.sampler.draw(self.batch, examples, stream(seed, f"data/{index}"), features=features)
            return drawn.xs, drawn.ys

        def loss(found: Tensor, ys: Tensor) -> Tensor:
            return (found - ys).square().mean()

        train_on(subject, tasks, loss, steps=steps, seed=seed, monitor=monitor, checkpoint=checkpoint)

    def evaluate(self, subject: InContextLearner, split: tuple[Tensor, Tensor]) -> dict[str, Items]:
        """Errors and distances of every task."""
        xs, ys = split
        said, few = answers(subject, xs, ys), slice(1, self.width)
        found = {
            "error": _ratio((said - ys).square(), ys.square()),
            "error@few": _ratio((said - ys).square()[:, few], ys.square()[:, few]),
            "error@last": _ratio((said - ys).square()[:, -1:], ys.square()[:, -1:]),
        }
        for name, address in REFERENCES.items():
            at = catalogue.parse(address)
            other = answers(make(catalogue.load(at.card), at.arguments, self.given), xs, ys)
            gap = ((said - other).square()[:, few] / self.width).mean(1)
            found[f"distance@{name}"] = Items(gap.double().tolist(), [1.0] * len(gap))
        return found


def train_on(
    subject: InContextLearner,
    tasks: Callable[[int], tuple[Tensor, Tensor]],
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    steps: int,
    seed: int,
    monitor: Monitor | None,
    checkpoint: Path | None,
) -> None:
    """`InContextLearner.fit`; a learner that has nothing to learn reports its last steps, as those do that count them."""
    told: list[int] = []

    def tell(step: int, loss: float) -> bool | None:
        told.append(step)
        return None if monitor is None else monitor(step, loss)

    subject.fit(tasks, loss, steps=steps, seed=seed, monitor=tell, checkpoint=checkpoint)
    if monitor is not None and not told:
        for step in sorted({max(1, steps - 1), steps}):
            monitor(step, 0.0)


def make(cls: type, arguments: dict[str, Any], given: dict[str, Any]) -> Any:
    """A learner with its arguments, and those of `given` that its constructor names."""
    asked = {name: value for name, value in given.items() if name in inspect.signature(cls).parameters}
    return cls(**{**asked, **arguments})


def answers(learner: InContextLearner, xs: Tensor, ys: Tensor) -> Tensor:
    """What is said of each label, [B, N], in eval mode without gradients."""
    with answering(learner), torch.no_grad():
        return torch.cat([learner.prefixes(x, y) for x, y in zip(xs.split(250), ys.split(250), strict=True)])


def _ratio(above: Tensor, below: Tensor) -> Items:
    return Items(above.double().sum(1).tolist(), below.double().sum(1).tolist())
