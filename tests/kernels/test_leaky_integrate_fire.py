"""Neurons: trains of spikes by hand, the surrogate's formula, and the fast form against the equations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from instar.errors import ShapeError
from instar.kernels.leaky_integrate_fire import leaky_integrate_fire, stepwise, surrogate
from instar.mixers.lif import LIF

FORMS = [leaky_integrate_fire, stepwise]
B, T, D = 3, 40, 5


def row(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).view(1, -1, 1)


@pytest.mark.parametrize("fire", FORMS)
def test_trains_by_hand(fire: Any) -> None:
    """τ = 2, θ = 1. 1.5 charges to ¾ and then to 1.125, which fires; from 0 again, after that."""
    rest = torch.zeros(1, 1, dtype=torch.float64)
    spikes, v = fire(row(1.5, 1.5, 1.5, 1.5, 0.0), rest)
    assert spikes.flatten().tolist() == [0, 1, 0, 1, 0]
    assert float(v) == 0
    spikes, v = fire(row(1.0, 1.0, -1.0), rest)
    assert not spikes.any()
    assert float(v) == pytest.approx(((0.5 + 1.0) / 2 - 1.0) / 2)


@pytest.mark.parametrize("fire", FORMS)
def test_a_constant_input_below_the_threshold_never_fires_and_twice_it_always_does(fire: Any) -> None:
    rest = torch.zeros(1, 1, dtype=torch.float64)
    assert not fire(torch.full((1, 200, 1), 0.999, dtype=torch.float64), rest)[0].any()
    assert fire(torch.full((1, 200, 1), 2.0, dtype=torch.float64), rest)[0].all()


@pytest.mark.parametrize("flags", [False, True])
@pytest.mark.parametrize("knobs", [{}, {"tau": 3.0, "threshold": 0.4, "alpha": 2.0}, {"detach_reset": False}], ids=str)
def test_the_fast_form_is_the_equations_in_values_and_gradients(knobs: dict[str, Any], flags: bool) -> None:
    torch.manual_seed(0)
    mask, reset = (torch.rand(B, T) > 0.3, torch.rand(B, T) < 0.1) if flags else (None, None)
    found = []
    x, v = 2 * torch.randn(B, T, D, dtype=torch.float64), 0.3 * torch.rand(B, D, dtype=torch.float64)
    weights, end = torch.randn_like(x), torch.randn_like(v)
    for fire in FORMS:
        z, start = x.clone().requires_grad_(), v.clone().requires_grad_()
        spikes, after = fire(z, start, mask=mask, reset=reset, **knobs)
        found.append((spikes, after, *torch.autograd.grad((spikes * weights).sum() + (after * end).sum(), [z, start])))
    assert 0.05 < float(found[0][0].detach().mean()) < 0.6
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("fire", FORMS)
def test_the_gradient_of_one_step_is_the_surrogates_formula(fire: Any) -> None:
    x = torch.linspace(-3, 5, 41, dtype=torch.float64).view(1, 1, -1).requires_grad_()
    spikes, _ = fire(x, x.new_zeros(1, 41), tau=2.0, threshold=1.0, alpha=4.0)
    (gradient,) = torch.autograd.grad(spikes.sum(), x)
    rise = 1 / (1 + torch.exp(-4 * (x / 2 - 1)))
    torch.testing.assert_close(gradient, 4 * rise * (1 - rise) / 2)


def test_the_surrogate_is_the_slope_of_a_sigmoid() -> None:
    y = torch.linspace(-2, 2, 21, dtype=torch.float64).requires_grad_()
    (slope,) = torch.autograd.grad(torch.sigmoid(3.0 * y).sum(), y)
    torch.testing.assert_close(surrogate(y.detach(), 3.0), slope)


def test_whether_the_reset_is_detached_matters_to_the_gradient_alone() -> None:
    torch.manual_seed(0)
    x = (2 * torch.randn(B, T, D, dtype=torch.float64)).requires_grad_()
    found = []
    for detached in (True, False):
        spikes, v = leaky_integrate_fire(x, x.new_zeros(B, D), detach_reset=detached)
        found.append((spikes, v, torch.autograd.grad(spikes.sum(), x)[0]))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert float((found[0][2] - found[1][2]).abs().max()) > 0.1


def test_neurons_know_nothing_of_each_other() -> None:
    """Neither rows nor channels are integrated over: each neuron alone gives its own train."""
    torch.manual_seed(0)
    x = 2 * torch.randn(B, T, D)
    spikes, v = leaky_integrate_fire(x, torch.zeros(B, D))
    for b in range(B):
        for d in range(D):
            alone, end = leaky_integrate_fire(x[b : b + 1, :, d : d + 1], torch.zeros(1, 1))
            assert torch.equal(alone[0, :, 0], spikes[b, :, d])
            assert torch.equal(end[0, 0], v[b, d])


@pytest.mark.parametrize("wrong", [{"tau": 0.5}, {"threshold": 0.0}, {"alpha": -1.0}], ids=str)
def test_impossible_neurons_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ShapeError, match="received"):
        LIF(**wrong)


def test_second_derivatives_are_refused() -> None:
    """What it saves is constant to autograd, which would make them wrong without a word."""
    drive = torch.randn(1, 6, 2, requires_grad=True)
    spikes, _ = leaky_integrate_fire(drive, torch.zeros(1, 2))
    (first,) = torch.autograd.grad(spikes.sum(), drive, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|does not require grad"):
        first.square().sum().backward()
