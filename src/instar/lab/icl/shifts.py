"""Which shifts between training and test a learner bears: of the task, of the query, of the inputs, of the length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from instar.errors import ShapeError
from instar.interfaces import InContextLearner
from instar.lab.icl.contexts import answering
from instar.lab.icl.tasks import Drawn, TaskSampler


@dataclass(frozen=True)
class Shift:
    """One test."""

    name: str
    error: float
    """Mean squared error at the query over that of answering 0."""
    low: float
    high: float
    """95 % by the mean's standard error over tasks."""


def shifts(
    sampler: TaskSampler, shown: int, *, tasks: int = 500, seed: int = 0, dtype: torch.dtype = torch.float64
) -> dict[str, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Contexts (xs, ys, x_query [B, 1, D], labels [B, 1]) by the name of the shift from what the sampler draws.

    none; task: larger weights (3 τ), noise (½ τ), a network of ReLUs; query: ten times as long, or orthogonal to the examples
    (where they leave a direction); covariate: all inputs times 2 and 3, or moved by 1; length: twice as many examples.
    """
    if shown < 1 or tasks < 2:
        raise ShapeError(f"Expected shown ≥ 1 and tasks ≥ 2; received {shown} and {tasks}.")

    def drawn(which: TaskSampler, examples: int = shown) -> Drawn:
        return which.draw(tasks, examples + 1, torch.Generator().manual_seed(seed), dtype)

    def split(d: Drawn) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return d.xs[:, :-1], d.ys[:, :-1], d.xs[:, -1:], d.truth[:, -1:]

    plain = drawn(sampler)
    found = {
        "none": split(plain),
        "task: weights × 3": split(drawn(replace(sampler, prior=3 * sampler.prior))),
        "task: noise": split(drawn(replace(sampler, noise=sampler.noise + 0.5 * sampler.prior))),
        "task: ReLU network": split(drawn(replace(sampler, family="relu_network"))),
        "covariate: × 2": split(drawn(replace(sampler, scale=2 * sampler.scale))),
        "covariate: × 3": split(drawn(replace(sampler, scale=3 * sampler.scale))),
        "covariate: + 1": split(drawn(replace(sampler, shift=sampler.shift + 1))),
        "length × 2": split(drawn(sampler, 2 * shown)),
    }
    if plain.weights is not None:
        xs, ys, query, _ = found["none"]
        found["query: × 10"] = (xs, ys, 10 * query, torch.einsum("bqd,bd->bq", 10 * query, plain.weights))
        if shown < sampler.width:
            off = query - query @ xs.mT @ torch.linalg.pinv(xs.mT)
            found["query: orthogonal"] = (xs, ys, off, torch.einsum("bqd,bd->bq", off, plain.weights))
    return found


def evaluate(learner: InContextLearner, tests: Mapping[str, tuple[Tensor, Tensor, Tensor, Tensor]]) -> list[Shift]:
    """Every test that the learner can take; one that is longer than it allows is left out."""
    found = []
    for name, (xs, ys, query, label) in tests.items():
        try:
            with answering(learner), torch.no_grad():
                errors = (learner.predict(xs, ys, query) - label).square().mean(1)
        except ShapeError:
            if name.startswith("length"):
                continue
            raise
        scale = float(label.square().mean())
        half = 1.96 * float(errors.std()) / len(errors) ** 0.5
        mean = float(errors.mean())
        found.append(Shift(name, mean / scale, (mean - half) / scale, (mean + half) / scale))
    return found


def table(found: Mapping[str, list[Shift]]) -> str:
    """A row for each shift, a column for each learner."""
    names = list(dict.fromkeys(shift.name for column in found.values() for shift in column))
    lines = [f"{'shift':22}" + "".join(f"{name:>18}" for name in found)]
    for name in names:
        cells = [next((s for s in column if s.name == name), None) for column in found.values()]
        lines.append(f"{name:22}" + "".join(f"{'not taken' if c is None else f'{c.error:.3f}':>18}" for c in cells))
    return "\n".join(lines)
