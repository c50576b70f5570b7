"""Growths with a planted mistake each: the check that is meant for it finds it, and what it says helps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from instar.checks import contract, find, run
from instar.growth.growing import Grown
from instar.growth.lemon import Lemon
from instar.growth.tokenformer import TokenFormerGrowth
from instar.growth.zero_ffn import ZeroFFN
from instar.interfaces import Plan, Preserves


class MovesTau(TokenFormerGrowth):
    """Says that it keeps every bit, and lets τ grow."""

    def __init__(self) -> None:
        super().__init__(tau="grow")

    @property
    def preserves(self) -> Preserves:
        return "bits"


class ForgetsTheOptimiser(Lemon):
    """Leaves the optimiser with parameters that are no longer there."""

    def grow(self, model: nn.Module, plan: Plan, *, optimizer: Any = None, seed: int = 0) -> Grown:
        return super().grow(model, plan, optimizer=None, seed=seed)


class DoublesMoments(ZeroFFN):
    """Keeps a momentum that is not the gradient's."""

    def grow(self, model: nn.Module, plan: Plan, *, optimizer: Any = None, seed: int = 0) -> Grown:
        grown = super().grow(model, plan, optimizer=optimizer, seed=seed)
        for state in optimizer.state.values() if optimizer else ():
            for value in state.values():
                if isinstance(value, torch.Tensor):
                    value.mul_(2)
        return grown


class DrawsFromEverybody(TokenFormerGrowth):
    """Draws from the global generator."""

    def grow(self, model: nn.Module, plan: Plan, *, optimizer: Any = None, seed: int = 0) -> Grown:
        torch.rand(1)
        return super().grow(model, plan, optimizer=optimizer, seed=seed)


class NeverLearns(ZeroFFN):
    """New units that are zero on both sides."""

    def grow(self, model: nn.Module, plan: Plan, *, optimizer: Any = None, seed: int = 0) -> Grown:
        old = model.hidden
        grown = super().grow(model, plan, optimizer=optimizer, seed=seed)
        for block in model.blocks:  # type: ignore[union-attr]
            for layer in (block.feed.gate, block.feed.up):  # type: ignore[union-attr]
                layer.weight.data[old:] = 0  # type: ignore[union-attr,index]
        return grown


class LeavesATrace(TokenFormerGrowth):
    """Changes the model before the update begins."""

    def grow(self, model: nn.Module, plan: Plan, *, optimizer: Any = None, seed: int = 0) -> Grown:
        model.grown_by = seed  # type: ignore[assignment]
        return super().grow(model, plan, optimizer=optimizer, seed=seed)


class TakesAnyPlan(TokenFormerGrowth):
    """Takes a smaller number of pairs for the same number."""

    def grow(self, model: nn.Module, plan: Plan, *, optimizer: Any = None, seed: int = 0) -> Grown:
        wanted = {name: max(500, size) if isinstance(size, int) else size for name, size in dict(plan).items()}
        return super().grow(model, wanted, optimizer=optimizer, seed=seed)


@pytest.mark.parametrize(
    ("cls", "check", "words"),
    [
        (MovesTau, "preserved", "logits differ"),
        (ForgetsTheOptimiser, "optimisers", "each parameter of the grown model once"),
        (DoublesMoments, "moments", "not the gradient"),
        (DrawsFromEverybody, "deterministic", "global generator"),
        (NeverLearns, "larger", "no gradient reaches it"),
        (LeavesATrace, "interrupted", "is not what it was"),
        (TakesAnyPlan, "refusals", "a smaller target must be refused"),
    ],
)
def test_a_planted_mistake_is_found(cls: type, check: str, words: str) -> None:
    outcome = run(next(one for one in contract("Growth") if one.name == check), find(cls))
    assert outcome.status == "failed"
    assert words in outcome.message
