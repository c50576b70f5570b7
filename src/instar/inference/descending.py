"""What predictors by descent on an energy have in common: steps of a batch, the rate of a learnt step size, what was observed."""

from __future__ import annotations

import abc
from typing import Any

import torch
from torch import Tensor

from instar.inference.energy_transformer import EnergyTransformer, Observed
from instar.inference.step_size import StepSize
from instar.interfaces import Predictor


class Descending(Predictor):
    """Trained through `steps` steps of descent, and up to `random_steps` more, with the step size a = `step_size`."""

    random_steps: int
    step_size: StepSize

    def draw_steps(self) -> int:
        """Steps of the next batch: the least in evaluation, and in training as many as are drawn."""
        return self.steps + (int(torch.randint(self.random_steps + 1, ())) if self.training and self.random_steps else 0)

    def groups(self, lr: float) -> list[dict[str, Any]]:
        """As usual, and a at 3 a times the rate, without decay."""
        return self.step_size.groups(super().groups(lr), lr)


class TwoStream(Descending):
    """Descends behind every position of a sequence: each step on its own landscape, further ones on the last."""

    transformer: EnergyTransformer

    @abc.abstractmethod
    def observe(self, x: Tensor, landscape: int = 0, past: Observed | None = None) -> Observed:
        """Keys and values of x [B, T, …], behind what was observed before."""

    def observe_steps(self, x: Tensor, steps: int) -> list[Observed]:
        """What each of so many steps reads; each landscape is observed once."""
        last = self.transformer.landscapes - 1
        found = [self.observe(x, landscape) for landscape in range(min(steps, last + 1))]
        return [found[min(n, last)] for n in range(steps)]

    def observe_landscapes(self, x: Tensor, past: list[Observed] | None) -> list[Observed]:
        """Every landscape behind `past`, a list that is brought up to date; None or an empty one is nothing before."""
        before: list[Observed | None] = list(past) if past else [None] * self.transformer.landscapes
        observed = [self.observe(x, landscape, one) for landscape, one in enumerate(before)]
        if past is not None:
            past[:] = observed
        return observed
