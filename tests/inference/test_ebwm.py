"""States are not leaked, descent contracts, starting from the last state is persistence, and roll-outs read the past once."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from instar.errors import ShapeError
from instar.inference.ebwm import Ebwm, distance
from instar.inference.thinker import Thinker


def made(**arguments: Any) -> Ebwm:
    torch.manual_seed(0)
    return Ebwm(16, **{"heads": 2, "alpha": 20.0, "inputs": 3, **arguments}).double()


STATES = torch.randn(2, 7, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_no_steps_from_the_last_state_are_persistence() -> None:
    assert torch.equal(made(start="last").predict(STATES, steps=0)[0], STATES)
    assert torch.equal(made(residual=True, start="last").predict(STATES, steps=0)[0], STATES)


def test_what_comes_later_does_not_reach_a_candidate() -> None:
    model = made(start="zeros")
    changed = STATES.clone()
    changed[:, 4:] += 1
    one, two = (model.predict(x, steps=3)[0] for x in (STATES, changed))
    assert torch.allclose(one[:, :4], two[:, :4], atol=1e-12)
    assert not torch.allclose(one[:, 4], two[:, 4], atol=1e-4)
    observed = model.observe(STATES)
    candidates = torch.randn_like(STATES)
    moved = candidates.clone()
    moved[:, [0, 1, 5]] += 1
    energies = [model.energy(observed)(c) for c in (candidates, moved)]
    assert torch.allclose(energies[0][:, [2, 3, 4, 6]], energies[1][:, [2, 3, 4, 6]], atol=1e-12)


def test_a_quadratic_energy_contracts_by_one_minus_a() -> None:
    y, _ = Thinker(steps=3, step_size=0.4)(lambda c: 0.5 * (c - 2 * STATES).square().sum(-1), STATES)
    assert torch.allclose(y - 2 * STATES, 0.6**3 * -STATES)


def test_a_roll_out_is_one_prediction_after_another() -> None:
    model = made(start="zeros", conditioning="time_embed", landscapes=2)
    found, energies = model.rollout(STATES, 3, steps=2)
    row = STATES
    for n in range(3):
        y, trace = model.predict(row, steps=2)
        assert torch.allclose(found[:, n], y[:, -1], atol=1e-11)
        assert trace.energies is not None
        assert torch.allclose(energies[:, n], trace.energies[-1, :, -1], atol=1e-11)
        row = torch.cat([row, y[:, -1:]], 1)
    assert model.rollout(STATES, 0)[0].shape == (2, 0, 3)


def test_later_steps_do_not_reach_through_a_detached_state() -> None:
    model = made(steps=2, start="zeros").train()
    target = STATES.roll(-1, 1)
    (whole,) = torch.autograd.grad(model.loss(STATES, target), model.project.weight)
    total, c = torch.zeros_like(whole), torch.zeros_like(STATES)
    for _ in range(2):
        at = c.requires_grad_()
        (g,) = torch.autograd.grad(model.energy(model.observe(STATES))(at).sum(), at, create_graph=True)
        after = at - 20.0 * g
        loss = torch.nn.functional.smooth_l1_loss(after, target) / 2
        total = total + torch.autograd.grad(loss, model.project.weight)[0]
        c = after.detach()
    assert torch.allclose(whole, total, atol=1e-12)


def test_labels_of_energies_are_distances_between_0_and_1() -> None:
    one, two = torch.randn(2, 50, 4)
    assert bool(((distance(one, two) >= 0) & (distance(one, two) <= 1)).all())
    assert float(distance(one, one).max()) == pytest.approx(0, abs=1e-5)
    model = made(energy_loss="mse", noise=0.1, random_steps=2, random_alpha=2.0, last_only=True).train()
    target = STATES.roll(-1, 1)
    target[:, -1] = float("nan")
    model.loss(STATES, target).backward()
    assert bool(model.project.weight.grad.isfinite().all())  # type: ignore[union-attr]


def test_settings_that_make_no_sense() -> None:
    for wrong in ({"steps": 0}, {"outputs": 2}, {"start": "mean"}, {"energy_loss": "huber"}):
        with pytest.raises(ShapeError):
            made(**wrong)
    with pytest.raises(ShapeError, match="received"):
        made().predict(STATES[..., :2], steps=1)
