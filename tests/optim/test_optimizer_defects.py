"""Optimisers with a planted mistake each: the check that is meant for it finds it, and what it says helps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from instar import catalogue
from instar.checks import Subject, contract, find, run
from instar.optim.adamw import AdamW
from instar.optim.lamb import LAMB
from instar.optim.offloaded_adamw import OffloadedAdamW
from instar.optim.sgd import SGD


class OneRateForAll(SGD):
    """Steps of every group at the rate of the last."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        kept = [group["lr"] for group in self.param_groups]
        for group in self.param_groups:
            group["lr"] = kept[-1]
        loss = super().step(closure)
        for group, rate in zip(self.param_groups, kept, strict=True):
            group["lr"] = rate
        return loss


class LeavesOut(SGD):
    """Trains matrices only."""

    def __init__(self, model: nn.Module, *, lr: float = 0.01) -> None:
        super().__init__(model, lr=lr)
        del self.param_groups[1:]


class HasNoDefault(LAMB):
    """Knows the decay of its own groups only."""

    def __init__(self, model: nn.Module, *, lr: float = 0.01) -> None:
        super().__init__(model, lr=lr)
        del self.defaults["weight_decay"]


class CallsTwice(AdamW):
    """Evaluates its closure again after the step."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = super().step(closure)
        return loss if closure is None else closure()


class Rounds(OffloadedAdamW):
    """What is streamed decays more than it should."""

    def __init__(self, model: nn.Module, *, ratio: float | None = None, **others: Any) -> None:
        super().__init__(model, ratio=ratio, **others)
        if ratio == 1.0:
            self.param_groups[0]["weight_decay"] *= 2


@pytest.mark.parametrize(
    ("subject", "check", "words"),
    [
        (find(OneRateForAll), "groups", "group 0 has moved"),
        (find(LeavesOut), "groups", "exactly one group"),
        (find(HasNoDefault), "groups", "raised KeyError"),
        (find(CallsTwice), "closures", "calls its closure once"),
        (Subject(Rounds, catalogue.method("offloaded_adamw")), "placement", "preset all_streamed: other numbers"),
    ],
    ids=lambda value: value.cls.__name__ if isinstance(value, Subject) else None,
)
def test_a_planted_mistake_in_an_optimiser_is_found(subject: Subject, check: str, words: str) -> None:
    outcome = run(next(one for one in contract("Optimizer") if one.name == check), subject)
    assert outcome.status == "failed"
    assert words in outcome.message
