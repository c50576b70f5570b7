"""Thinking on any energy: closed forms, refusal of bad steps, selection, and energies that must be refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from instar.errors import DivergedError, EnergyError, ShapeError
from instar.inference.thinker import Thinker

TARGET = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
START = torch.randn(5, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def quadratic(y: Tensor) -> Tensor:
    return 0.5 * (y - TARGET).square().sum(-1)


def wells(y: Tensor) -> Tensor:
    """Two wells a coordinate, the left one deeper."""
    return ((y.square() - 1).square() + 0.3 * y).sum(-1)


def draw(generator: torch.Generator | None) -> Tensor:
    return torch.randn(200, 2, generator=generator, dtype=torch.float64)


def test_a_quadratic_energy_is_solved_in_one_step_and_contracts_by_one_minus_a() -> None:
    y, trace = Thinker(steps=1, step_size=1.0)(quadratic, START)
    assert torch.allclose(y, TARGET, atol=1e-12)
    y, trace = Thinker(steps=4, step_size=0.3)(quadratic, START)
    assert torch.allclose(y - TARGET, 0.7**4 * (START - TARGET), atol=1e-12)
    assert trace.energies is not None
    for n, energies in enumerate(trace.energies):
        assert torch.allclose(energies, 0.49**n * quadratic(START), rtol=1e-10)
    assert trace.steps.tolist() == [4] * 5
    assert not trace.notes


def test_no_steps_give_the_start() -> None:
    y, trace = Thinker(steps=0)(quadratic, START)
    assert torch.equal(y, START)
    assert trace.energies is not None
    assert torch.equal(trace.energies, quadratic(START)[None])


def test_a_step_size_can_differ_by_sample() -> None:
    sizes = torch.linspace(0.1, 1.0, 5, dtype=torch.float64)
    y, _ = Thinker(steps=2, step_size=sizes)(quadratic, START)
    assert torch.allclose(y - TARGET, (1 - sizes[:, None]) ** 2 * (START - TARGET))


def test_a_constant_changes_nothing_but_the_energies() -> None:
    one, _ = Thinker(steps=3, step_size=0.05)(wells, START)
    two, _ = Thinker(steps=3, step_size=0.05)(lambda y: wells(y) + 7, START)
    assert torch.allclose(one, two, atol=1e-14)


@pytest.mark.parametrize("size", [0.02, 0.5, 30.0])
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_accepted_steps_never_raise_an_energy(size: float, noise: float) -> None:
    generator = torch.Generator().manual_seed(0)
    y, trace = Thinker(steps=12, step_size=size, noise=noise, accept=True)(wells, draw, generator=generator)
    assert trace.energies is not None
    assert bool((trace.energies.diff(dim=0) <= 0).all())
    assert torch.allclose(trace.energies[-1], wells(y))
    assert bool((trace.steps <= 12).all())


def test_a_diverging_step_size_is_said_and_caught() -> None:
    with pytest.raises(DivergedError, match="accept=True"):
        Thinker(steps=60, step_size=50.0)(wells, START)
    y, trace = Thinker(steps=40, step_size=50.0, accept=True)(wells, START)
    assert "diverges" in trace.notes[0]
    assert bool((wells(y) < wells(START)).all())
    _, trace = Thinker(steps=2, step_size=2.5)(quadratic, START)
    assert "Energies rose" in trace.notes[0]


def test_tolerance_stops_each_sample_by_itself() -> None:
    start = torch.cat([TARGET[:1], START[1:]])
    y, trace = Thinker(steps=100, step_size=0.5, tolerance=1e-6)(quadratic, start)
    assert trace.steps[0] == 1
    assert bool((trace.steps[1:] > 5).all())
    assert bool((trace.steps < 100).all())
    assert bool((quadratic(y) < 1e-5).all())


def test_a_sample_that_has_stopped_ends_no_other() -> None:
    """A distance has no slope where it is zero: there the first sample has arrived, and the second goes on."""
    start = torch.tensor([[2.0**-20, 0.0], [10.0, 0.0]], dtype=torch.float64)
    thinker = Thinker(steps=5, step_size=torch.tensor([2.0**-20, 0.5]), tolerance=1e-5)
    y, trace = thinker(lambda y: y.square().sum(-1).sqrt(), start)
    assert trace.steps.tolist() == [1, 5]
    assert y.tolist() == [[0.0, 0.0], [7.5, 0.0]]


def test_the_lowest_of_more_samples_is_never_worse_and_the_control_never_better() -> None:
    found = {}
    for select in ("lowest", "drop", "highest"):
        thinker = Thinker(steps=60, step_size=0.05, samples=6, select=select)  # type: ignore[arg-type]
        y, trace = thinker(wells, draw, generator=torch.Generator().manual_seed(3))
        assert trace.sampled is not None
        assert trace.energies is not None
        assert torch.allclose(wells(y), trace.energies[-1])
        found[select] = wells(y)
        if select == "lowest":
            assert torch.equal(trace.sampled.amin(0), trace.energies[-1])
        if select == "highest":
            assert torch.equal(trace.sampled.amax(0), trace.energies[-1])
    alone, _ = Thinker(steps=60, step_size=0.05)(wells, draw, generator=torch.Generator().manual_seed(3))
    assert bool((found["lowest"] <= wells(alone)).all())
    assert bool((found["highest"] >= wells(alone)).all())
    assert float((found["lowest"] < wells(alone) - 0.1).double().mean()) > 0.3  # the deeper well is found more often


def test_breaking_off_gives_what_fewer_steps_give() -> None:
    for number, moment in enumerate(Thinker(steps=5, step_size=0.3).anytime(quadratic, START)):
        fewer, _ = Thinker(steps=number, step_size=0.3)(quadratic, START)
        assert torch.equal(moment.state, fewer)


def test_landscapes_one_a_step_then_the_last_or_spread_over_all() -> None:
    seen: list[int] = []

    def landscape(which: int) -> Any:
        def energy(y: Tensor) -> Tensor:
            if torch.is_grad_enabled():
                seen.append(which)
            return quadratic(y)

        return energy

    for way, wanted in (("last", [0, 1, 1, 1]), ("all", [0, 0, 1, 1])):
        seen.clear()
        thinker = Thinker(steps=4, step_size=0.1, landscapes=way, probe=False)  # type: ignore[arg-type]
        y, _ = thinker([landscape(0), landscape(1)], START)
        assert seen == wanted
        assert torch.allclose(y - TARGET, 0.9**4 * (START - TARGET))


def test_noise_follows_the_generator() -> None:
    thinker = Thinker(steps=3, step_size=0.1, noise=1.0)
    one, two, three = (thinker(quadratic, START, generator=torch.Generator().manual_seed(s))[0] for s in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, three)


def test_energies_on_positions_and_modules() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1, bias=False))
    start = torch.randn(2, 3, 4)
    with torch.no_grad():
        y, trace = Thinker(steps=5, step_size=0.1, accept=True)(lambda c: net(c).squeeze(-1), start)
    assert trace.energies is not None
    assert trace.energies.shape == (6, 2, 3)
    assert bool((trace.energies[-1] < trace.energies[0]).all())
    assert not y.requires_grad
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize(
    ("energy", "words"),
    [
        (lambda y: quadratic(y.detach()), "not differentiable"),
        (lambda y: quadratic(y.round().detach() + 0 * y.detach()), "not differentiable"),
        (lambda y: nn.Parameter(torch.ones(5, dtype=torch.float64)) * 2, "does not depend"),
        (lambda y: quadratic(y).mean(), "one number for the whole batch"),
        (lambda y: quadratic(y)[:3], "one a sample"),
        (lambda y: y.long(), "floating"),
        (lambda y: quadratic(y - y.mean(0)), "couples samples"),
        (lambda y: quadratic(nn.BatchNorm1d(3).double()(y)), "couples samples"),
        (lambda y: quadratic(y) + torch.inf, "not finite"),
        (lambda y: (1e200 * y).square().sum(-1), "not finite"),
    ],
)
def test_bad_energies_are_named(energy: Any, words: str) -> None:
    with pytest.raises(EnergyError, match=words):
        Thinker(steps=2, step_size=0.1)(energy, START)


def test_inference_mode_is_refused() -> None:
    with torch.inference_mode(), pytest.raises(EnergyError, match="no_grad"):
        Thinker(steps=1, probe=False)(quadratic, START)


@pytest.mark.parametrize(
    "wrong",
    [{"steps": -1}, {"samples": 0}, {"step_size": -1.0}, {"step_size": float("nan")}, {"noise": -1}, {"select": "best"}],
)
def test_settings_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(ShapeError):
        Thinker(**wrong)


def test_equal_samples_are_refused() -> None:
    with pytest.raises(ShapeError, match="all the same"):
        Thinker(samples=3)(quadratic, START)
