"""Probes: is a quantity of a known algorithm readable from the hidden states of a learner?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from instar.bench.fit import descend
from instar.bench.seeds import initialising, stream
from instar.errors import DataError, ShapeError
from instar.lab.icl.contexts import answering
from instar.lab.icl.tasks import TaskSampler
from instar.lab.icl_linear import InContextDecoder
from instar.lab.least_squares import LeastSquares

Target = Literal["moment", "weights", "gram"]


class Probe(nn.Module):
    r"""v = FF(Σ_i α_i W_v h_i), α = softmax(s) with one learned s for each position, whatever the input is.

    Args: tokens, hidden: of the states; outputs: of the target; width: of the MLP; `linear` makes FF a linear map instead.
    """

    def __init__(self, tokens: int, hidden: int, outputs: int, *, width: int = 512, linear: bool = False) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(tokens))
        self.value = nn.Linear(hidden, hidden, bias=False)
        inner = nn.Sequential(nn.Linear(hidden, width), nn.GELU(), nn.Linear(width, outputs))
        self.feed: nn.Module = nn.Linear(hidden, outputs) if linear else inner

    def forward(self, h: Tensor) -> Tensor:
        """h [B, T, hidden] -> [B, outputs]."""
        return self.feed(torch.einsum("btd,t->bd", self.value(h), self.scores.softmax(0)))


@dataclass(frozen=True)
class Reading:
    """One layer and target."""

    layer: int
    """0 is before the first block."""
    target: Target
    error: float
    """Squared error on fresh tasks over the variance of the target: 1 is what a constant has."""
    control: float | None
    """The same from the states of the control model."""


def read(
    learner: InContextDecoder,
    sampler: TaskSampler,
    *,
    control: InContextDecoder | None = None,
    targets: tuple[Target, ...] = ("moment", "weights"),
    examples: int | None = None,
    linear: bool = False,
    width: int = 512,
    steps: int = 2000,
    lr: float = 1e-3,
    batch: int = 64,
    seed: int = 0,
) -> list[Reading]:
    """Train a probe for each layer and target on fresh tasks, and read fresh ones.

    targets: `moment`, Xᵀy; `weights`, w of least squares; `gram`, XᵀX, of the context. control: a learner that was trained on
    tasks with all weights 1 (`TaskSampler(fixed=True)`), probed on the same tasks; it has no need of what is looked for.
    examples: of a context; None is as many as the learner takes. Raises ShapeError; DataError for targets without variance.
    """
    n = examples or learner.examples
    if n < 1 or n > learner.examples or steps < 1:
        raise ShapeError(f"Expected 1 to {learner.examples} examples and steps ≥ 1; received {n} and {steps}.")
    found = []
    layers = len(_states(learner, *_tasks(sampler, n, 1, seed, "size")))
    for layer in range(layers):
        for target in targets:
            errors = [
                _fit(model, sampler, layer, target, n, linear, width, steps, lr, batch, seed)
                for model in (learner, control)
                if model is not None
            ]
            found.append(Reading(layer, target, errors[0], errors[1] if control is not None else None))
    return found


def _fit(
    model: InContextDecoder,
    sampler: TaskSampler,
    layer: int,
    target: Target,
    n: int,
    linear: bool,
    width: int,
    steps: int,
    lr: float,
    batch: int,
    seed: int,
) -> float:
    wanted = TARGETS[target]

    def pairs(index: int | str, count: int) -> tuple[Tensor, Tensor]:
        xs, ys = _tasks(sampler, n, count, seed, f"probe/{index}")
        return _states(model, xs, ys)[layer], wanted(xs, ys)

    states, truth = pairs("test", 500)
    spread = (truth - truth.mean(0)).square().mean()
    if not float(spread) > 0:
        raise DataError(f"The target {target} is the same for all tasks; there is nothing to read.")
    with initialising(seed):
        probe = Probe(states.shape[1], states.shape[2], truth.shape[1], width=width, linear=linear)
    descend(
        probe,
        torch.optim.Adam(probe.parameters(), lr=lr),
        lambda index: pairs(index, batch),
        lambda module, given: (module(given[0]) - given[1]).square().mean(),
        steps=steps,
        seed=seed,
    )
    with torch.no_grad():
        return float((probe(states) - truth).square().mean() / spread)


def _tasks(sampler: TaskSampler, n: int, count: int, seed: int, name: str) -> tuple[Tensor, Tensor]:
    drawn = sampler.draw(count, n, stream(seed, name))
    return drawn.xs, drawn.ys


def _states(model: InContextDecoder, xs: Tensor, ys: Tensor) -> list[Tensor]:
    with answering(model), torch.no_grad():
        return model.network.hidden(xs, ys)


TARGETS: dict[Target, Callable[[Tensor, Tensor], Tensor]] = {
    "moment": lambda xs, ys: (xs * ys.unsqueeze(-1)).sum(1),
    "weights": lambda xs, ys: LeastSquares().weights(xs, ys),
    "gram": lambda xs, ys: (xs.mT @ xs).flatten(1),
}
