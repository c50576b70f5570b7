"""What MKOR and K-FAC do whichever way a layer is stored, called, frozen, copied and cast; what they refuse to load."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from instar.errors import CheckpointError
from instar.optim.kfac import KFAC, _inverse
from instar.optim.mkor import MKOR

MAKERS: list[Any] = [
    lambda model: MKOR(model, "sgd", lr=0.05, f=1, factor_dtype="float32"),
    lambda model: KFAC(model, lr=0.05, f=1),
]
either = pytest.mark.parametrize("make", MAKERS, ids=["mkor", "kfac"])


def images(memory_format: torch.memory_format, make: Any) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).to(memory_format=memory_format)
    optimiser = make(model)
    for _ in range(3):
        optimiser.zero_grad()
        model(torch.randn(16, 3, 8, 8)).square().mean().backward()
        optimiser.step()
    return model


@either
def test_channels_last_is_preconditioned_as_well(make: Any) -> None:
    plain, last = images(torch.contiguous_format, make), images(torch.channels_last, make)
    for p, q in zip(plain.parameters(), last.parameters(), strict=True):
        torch.testing.assert_close(q, p, rtol=1e-4, atol=1e-6)


class Named(nn.Module):
    """Calls its layer by the name of the argument."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(input=x)


@either
def test_a_layer_that_is_called_by_keyword_is_seen(make: Any) -> None:
    model = Named()
    optimiser = make(model)
    model(torch.randn(2, 4)).sum().backward()
    assert optimiser.layers[0].inputs.count == 1


@either
@pytest.mark.parametrize("at_first", [True, False])
def test_a_bias_that_is_frozen_or_thawed_later_costs_no_step(at_first: bool, make: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    model[0].bias.requires_grad_(at_first)
    optimiser = make(model)
    model[0].bias.requires_grad_(not at_first)
    before = model[0].weight.detach().clone()
    for _ in range(2):
        optimiser.zero_grad()
        model(torch.randn(8, 4)).square().mean().backward()
        optimiser.step()
    assert optimiser.steps == 2
    assert not torch.equal(model[0].weight, before)


@either
def test_passes_of_a_copy_of_the_model_are_not_its_own(make: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    optimiser = make(model)
    copy.deepcopy(model)(torch.randn(8, 4)).square().mean().backward()
    assert optimiser.layers[0].inputs.count == 0


@either
def test_a_copy_of_the_optimiser_is_refused(make: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    with pytest.raises(CheckpointError, match="load_state_dict"):
        copy.deepcopy((model, make(model)))


@either
def test_a_step_under_autocast_is_one_in_float32(make: Any) -> None:
    models = []
    for cast in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 4))
        optimiser = make(model)
        for _ in range(3):
            optimiser.zero_grad()
            model(torch.randn(64, 32)).square().mean().backward()
            with torch.autocast("cpu", torch.bfloat16, enabled=cast):
                optimiser.step()
        models.append(model)
    for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(p, q)


def test_kfac_steps_under_autocast() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    optimiser = KFAC(model, f=1, lr=1e-3, damping=1e-6)
    for _ in range(30):
        optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            found = model(torch.randn(8, 64))
        found.float().square().mean().backward()
        assert {optimiser.layers[0].inputs.total.dtype, optimiser.layers[0].outputs.total.dtype} == {torch.float32}
        optimiser.step()
    assert all(t.dtype == torch.float32 and bool(t.isfinite().all()) for t in optimiser.inverses["0"])


def test_a_covariance_that_rounding_made_indefinite_gets_more_damping() -> None:
    covariance = torch.diag(torch.tensor([1.0, -5e-3]))
    found = _inverse(covariance, 1e-3)
    torch.testing.assert_close(found, torch.diag(1 / torch.tensor([1.008, 3e-3])))


@pytest.mark.parametrize(
    ("saved", "other", "named"),
    [("sgd", "adamw", True), ("adamw", "lamb", True), ("sgd", "adamw", False), ("adamw", "sgd", False)],
)
def test_the_state_of_another_inner_optimiser_is_refused_and_changes_nothing(saved: Any, other: Any, named: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    one, two = MKOR(model, saved, f=1), MKOR(model, other, f=1)
    for optimiser in (one, two):
        model(torch.randn(8, 4)).square().mean().backward()
        optimiser.step()
    state, before = one.state_dict(), str(two.state_dict())
    if not named:
        del state["mkor"]["inner"]  # as early states are
    with pytest.raises(CheckpointError, match="optimiser inside"):
        two.load_state_dict(state)
    assert str(two.state_dict()) == before
    two.load_state_dict(two.state_dict())
