"""The loop of trained heads: schedule, batches, weight decay, reproducibility, and what it refuses."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from instar.compat.training import Batches, Recipe, rate, train
from instar.errors import DataError, DivergedError, ShapeError


def test_rate_rises_to_one_and_falls_as_half_a_cosine() -> None:
    rates = [rate(step, 100, 0.05) for step in range(100)]
    assert rates[:5] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert rates[5] == 1.0
    assert rates[5 + 95 // 2] == pytest.approx(0.5 * (1 + math.cos(math.pi * 47 / 95)))
    assert all(a >= b for a, b in itertools.pairwise(rates[5:]))
    assert 0 < rates[-1] < 0.01
    assert rate(0, 1, 0.05) == 1.0


@pytest.mark.parametrize(("items", "size"), [(10, 3), (7, 7), (64, 8)])
def test_an_epoch_has_every_item_at_most_once_and_a_batch_follows_from_seed_and_step(items: int, size: int) -> None:
    batches = Batches(items, size, seed=3)
    steps = items // size
    for epoch in range(3):
        seen = torch.cat([batches.places(epoch * steps + step) for step in range(steps)])
        assert len(seen) == steps * size == len(set(seen.tolist()))
        assert 0 <= int(seen.min()) <= int(seen.max()) < items
    again = Batches(items, size, seed=3)
    assert torch.equal(again.places(2 * steps), batches.places(2 * steps))  # without what came before
    assert torch.equal(again.places(0), batches.places(0))
    if items > size:
        assert not torch.equal(Batches(items, size, seed=4).places(0), batches.places(0))


def test_sizes_suit_the_pairs() -> None:
    recipe = Recipe(epochs=10, batch=128, most_items=1_000_000, fewest=30)
    assert recipe.batch_size(50) == 50
    assert recipe.steps(50) == 30
    assert recipe.batch_size(6000) == 128
    assert recipe.steps(6000) == 10 * 46
    assert recipe.batch_size(100_000) == 1024
    assert recipe.steps(1_000_000) * recipe.batch_size(1_000_000) <= 1_000_000


def _quadratic(weight_decay: float, decoupled: bool = False, steps: int = 1, seed: int = 0) -> Tensor:
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, 2.0)

    def loss(places: Tensor) -> Tensor:
        return 0.0 * module.weight.sum() + 0.0 * places.sum()

    train(module, loss, 4, recipe=Recipe(lr=0.1, weight_decay=weight_decay, decoupled=decoupled), steps=steps, seed=seed)
    return module.weight.detach()


def test_weight_decay_is_part_of_adams_gradient_or_apart_from_it() -> None:
    assert float(_quadratic(0.0)) == 2.0
    # The first step of Adam is the rate times the sign of the gradient, however small the decay is.
    assert float(_quadratic(1e-3)) == pytest.approx(1.9, abs=1e-4)
    assert float(_quadratic(0.5, decoupled=True)) == pytest.approx(2.0 * (1 - 0.1 * 0.5))


def _regression(seed: int, noise: int = 0) -> tuple[nn.Linear, list[float]]:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(64, 5, generator=draw)
    y = x @ torch.randn(5, 3, generator=draw)
    module = nn.Linear(5, 3)
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    torch.manual_seed(noise)
    told: list[float] = []

    def loss(places: Tensor) -> Tensor:
        dropped = nn.functional.dropout(x[places], 0.1)
        return (module(dropped) - y[places]).square().mean()

    train(
        module, loss, 64, recipe=Recipe(batch=16, lr=0.05), steps=200, seed=seed, monitor=lambda step, value: told.append(value)
    )
    return module, told


def test_the_same_seed_gives_the_same_bits_whatever_was_drawn_before() -> None:
    (first, told), (second, _), (other, _) = _regression(1), _regression(1, noise=5), _regression(2)
    assert torch.equal(first.weight, second.weight)
    assert not torch.equal(first.weight, other.weight)
    assert len(told) == 200
    assert sum(told[-10:]) < 0.2 * sum(told[:10])


def test_the_global_generator_and_the_mode_stay() -> None:
    torch.manual_seed(9)
    before = torch.get_rng_state()
    module = nn.Linear(2, 1).eval()
    torch.set_rng_state(before)
    modes: list[bool] = []

    def loss(places: Tensor) -> Tensor:
        modes.append(module.training)
        return module(torch.rand(len(places), 2)).square().mean()

    train(module, loss, 4, steps=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert modes == [True, True]
    assert not module.training


def test_a_monitor_stops_after_its_step() -> None:
    module, told = nn.Linear(1, 1), []

    def watch(step: int, loss: float) -> bool:
        told.append(step)
        return step == 3

    train(module, lambda places: module.weight.square().sum(), 10, steps=50, monitor=watch)
    assert told == [1, 2, 3]


def test_no_steps_change_nothing() -> None:
    module = nn.Linear(3, 3)
    before = module.weight.detach().clone()
    train(module, lambda places: module.weight.square().sum(), 10, steps=0)
    assert torch.equal(module.weight, before)


def test_what_is_refused() -> None:
    module = nn.Linear(1, 1)
    with pytest.raises(DataError, match="0 pairs"):
        train(module, lambda places: module.weight.sum(), 0)
    with pytest.raises(ShapeError, match="-1"):
        train(module, lambda places: module.weight.sum(), 1, steps=-1)
    before = module.weight.detach().clone()
    with pytest.raises(DivergedError, match="step 1 of 5"):
        train(module, lambda places: (module.weight * math.nan).sum(), 4, steps=5)
    assert torch.equal(module.weight, before)
