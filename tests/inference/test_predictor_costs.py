"""Formulas of cards count what is computed: matrix products of one more step, and bytes that are kept of what was observed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from instar import catalogue, formula
from instar.inference.ebt import Ebt
from instar.state import nbytes


class Counter(TorchDispatchMode):
    """FLOPs of matrix products. torch's own mode hooks modules, which forbids `torch.autograd.grad` inside."""

    total = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        if function._overloadpacket in flop_registry:
            self.total += flop_registry[function._overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


def flops(predictor: Any, x: torch.Tensor, steps: int) -> int:
    with Counter() as counter:
        predictor.predict(x, steps=steps)
    return counter.total


@pytest.mark.parametrize(
    ("slug", "arguments", "x"),
    [
        ("ebt", {"width": 32, "depth": 3, "vocabulary": 50}, torch.randint(50, (1, 12))),
        ("ebwm", {"width": 32, "depth": 2, "inputs": 5}, torch.randn(1, 9, 5)),
        ("ebt_denoiser", {"width": 32, "depth": 2}, torch.randn(1, 8, 8)),
        ("recursed_denoiser", {"width": 32, "depth": 2}, torch.randn(1, 8, 8)),
        ("ddim_denoiser", {"width": 32, "depth": 2, "passes": 3}, torch.randn(1, 8, 8)),
    ],
)
def test_a_further_step_costs_what_the_card_says(slug: str, arguments: dict[str, Any], x: torch.Tensor) -> None:
    card = catalogue.method(slug)
    cls = catalogue.load(card)
    predictor = cls(**arguments)
    positions = 16 if "denoiser" in slug else x.shape[1]
    values = catalogue.variables(cls, arguments, T=positions, D=32, V=50)
    measured = flops(predictor, x, 5) - flops(predictor, x, 4)
    assert card.cost is not None
    assert measured == pytest.approx(formula.evaluate(card.cost.flops, values), rel=0.01)


def test_what_is_kept_of_observed_tokens() -> None:
    card, arguments = catalogue.method("ebt"), {"width": 32, "depth": 3}
    model = Ebt(**arguments)
    kept = sum(nbytes(model.observe(torch.randint(50, (1, 12)), landscape).layers) for landscape in range(2))
    assert card.cost is not None
    assert kept == formula.evaluate(card.cost.state, catalogue.variables(Ebt, arguments, T=12, D=32, V=257))
