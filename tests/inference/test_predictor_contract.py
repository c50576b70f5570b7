"""The contract of predictors catches what is planted: one defect after another in a small correct predictor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from instar.cards import Card
from instar.checks import Subject, check
from instar.inference.unlooped import Unlooped
from instar.interfaces import Trace


class Small(Unlooped):
    def __init__(self, width: int = 8, *, depth: int = 1) -> None:
        super().__init__(width, depth=depth, heads=2)


class CouplesRows(Small):
    def predict(self, x: Tensor, **given: Any) -> tuple[Tensor, Trace]:
        y, trace = super().predict(x, **given)
        return y - 0.1 * y.mean(0, keepdim=True), trace


class KnowsTheFuture(Small):
    def predict(self, x: Tensor, **given: Any) -> tuple[Tensor, Trace]:
        y, trace = super().predict(x, **given)
        return y + 0.1 * y.flip(1), trace


class AcceptsNegative(Small):
    def predict(self, x: Tensor, *, steps: int, generator: Any = None) -> tuple[Tensor, Trace]:
        return super().predict(x, steps=abs(steps), generator=generator)


class DrawsGlobally(Small):
    def predict(self, x: Tensor, *, steps: int, generator: Any = None) -> tuple[Tensor, Trace]:
        y, trace = super().predict(x, steps=steps)
        return y + 0.1 * torch.randn_like(y), trace


class KeepsAGraph(Small):
    def predict(self, x: Tensor, *, steps: int, generator: Any = None) -> tuple[Tensor, Trace]:
        return self.answer(x), super().predict(x, steps=steps)[1]


class ChangesMode(Small):
    def predict(self, x: Tensor, **given: Any) -> tuple[Tensor, Trace]:
        self.eval()
        return super().predict(x, **given)


class LearnsNothing(Small):
    def loss(self, x: Tensor, target: Tensor) -> Tensor:
        return super().loss(x, target).detach() + 0 * self.read_out.bias.sum()


class ForgetsAPart(Small):
    def __init__(self, width: int = 8, *, depth: int = 1) -> None:
        super().__init__(width, depth=depth)
        self.hidden_scale = torch.rand(())

    def predict(self, x: Tensor, **given: Any) -> tuple[Tensor, Trace]:
        y, trace = super().predict(x, **given)
        return (1 + self.hidden_scale) * y, trace


class LeavesOneOut(Small):
    """A parameter that no group of the optimiser holds."""

    def groups(self, lr: float) -> list[dict[str, Any]]:
        return [{**g, "params": [p for p in g["params"] if p is not self.read_out.bias]} for g in super().groups(lr)]


class CutsOff(Small):
    """The loss does not reach what is before the blocks."""

    def loss(self, x: Tensor, target: Tensor) -> Tensor:
        self.read_in.requires_grad_(False)
        try:
            return super().loss(x, target)
        finally:
            self.read_in.requires_grad_(True)


class CountsTooMany(Small):
    def predict(self, x: Tensor, *, steps: int, generator: Any = None) -> tuple[Tensor, Trace]:
        y, _ = super().predict(x, steps=steps)
        return y, Trace(torch.full((len(x),), steps + 1))


def failed(cls: type) -> set[str]:
    card = Card(
        slug="small",
        family="inference",
        title="",
        idea="",
        when_not="",
        kind="baseline",
        domains=[],
        tasks=[],
        path=Path("small.toml"),
        interface="Predictor",
        tags=["reads=vectors", "causal"],
    )
    return {outcome.name for outcome in check(Subject(cls, card)) if outcome.status == "failed"}


@pytest.mark.parametrize(
    ("cls", "caught"),
    [
        (Small, set()),
        (CouplesRows, {"rows"}),
        (KnowsTheFuture, {"causality"}),
        (AcceptsNegative, {"negative"}),
        (DrawsGlobally, {"seeded"}),
        (KeepsAGraph, {"no_graph"}),
        (ChangesMode, {"no_graph"}),
        (LearnsNothing, {"learns", "trains"}),
        (LeavesOneOut, {"trains"}),
        (CutsOff, {"trains"}),
        (ForgetsAPart, {"copies"}),
        (CountsTooMany, {"shapes"}),
    ],
)
def test_a_defect_is_caught_by_its_check(cls: type, caught: set[str]) -> None:
    found = failed(cls)
    assert caught <= found
    assert bool(found) == bool(caught)
