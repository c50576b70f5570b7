"""Deterministic costs: they follow from the model alone, and measuring leaves it as it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from instar import catalogue
from instar.bench import costs
from instar.bench.run import lift
from instar.problems.forecast import ForecastProblem
from instar.problems.recall import RecallProblem


def test_peak_bytes_hold_what_the_model_has() -> None:
    """Pins what is used of torch's private tracker: the kinds of tensors, which sum to the peak."""
    problem = RecallProblem(width=32, batch=4)
    data = problem.load(0)
    figures = []
    for _ in range(2):
        model = lift(problem, "gru", {}, data, 0)
        before = [p.detach().clone() for p in model.parameters()]
        figures.append(costs.measure(problem, model, data, 0))
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        assert all(p.grad is None for p in model.parameters())
    assert figures[0] == figures[1]
    found, weights = figures[0], 4 * figures[0]["parameters"]
    assert found["parameters"] == sum(p.numel() for p in model.parameters())
    assert found["peak_train_bytes.parameter"] == weights
    assert 0 < found["peak_train_bytes.gradient"] <= weights  # at the peak the backward pass has made some of them
    assert found["peak_train_bytes"] == sum(v for k, v in found.items() if k.startswith("peak_train_bytes."))


def test_frozen_parameters_are_counted_and_have_no_gradient() -> None:
    problem = RecallProblem(width=32, batch=4)
    data = problem.load(0)
    whole, part = (lift(problem, "gru", {}, data, 0) for _ in range(2))
    for name, parameter in part.named_parameters():
        parameter.requires_grad_("mixer" not in name)
    frozen = 4 * sum(p.numel() for p in part.parameters() if not p.requires_grad)
    assert frozen > 0
    all_of_it, some = (costs.measure(problem, model, data, 0) for model in (whole, part))
    assert some["peak_train_bytes.parameter"] == all_of_it["peak_train_bytes.parameter"]
    trained = all_of_it["peak_train_bytes.parameter"] - frozen
    assert 0 < some["peak_train_bytes.gradient"] <= trained < all_of_it["peak_train_bytes.parameter"]


def test_longer_batches_need_more() -> None:
    small, large = (RecallProblem(width=32, batch=b) for b in (4, 64))
    peaks = [costs.measure(p, lift(p, "softmax", {}, p.load(0), 0), p.load(0), 0)["peak_train_bytes"] for p in (small, large)]
    assert peaks[1] > 2 * peaks[0]
    assert catalogue.problem("recall").metric("peak_train_bytes").kind == "cost"


def test_steps_of_what_is_no_module_are_counted_from_what_they_are_made_of() -> None:
    kept: list[Tensor] = []

    def make() -> Callable[[], object]:
        held = torch.zeros(1000)

        def step() -> None:
            kept.append(torch.zeros(500))
            held.add_(torch.ones(2000)[:1000])

        return step

    assert costs.peak_of_steps(make) == 4 * (1000 + 2 * 500 + 2000)
    assert costs.peak_of_steps(make, nn.Linear(10, 30), steps=1) == 4 * (1000 + 500 + 2000 + 10 * 30 + 30)


FORECASTERS = sorted(slug for slug, card in catalogue.methods().items() if card.interface == "Forecaster" and card.entry)


@pytest.mark.parametrize("slug", FORECASTERS)
def test_every_forecaster_has_costs(slug: str) -> None:
    problem = ForecastProblem(context=16, horizon=4, batch=4)
    data = problem.load(0)
    model = lift(problem, slug, {}, data, 0)
    found = costs.measure(problem, model, data, 0)
    assert found["parameters"] == sum(p.numel() for p in model.parameters())
    assert found["peak_train_bytes"] >= 4 * found["parameters"]
