"""What all optimisers of one shape do with hooks, sparse gradients and copies."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from instar.optim.adamw import AdamW
from instar.optim.kfac import KFAC
from instar.optim.lamb import LAMB
from instar.optim.muon import Muon
from instar.optim.sgd import SGD


@pytest.mark.parametrize(("ours", "plain"), [(SGD, torch.optim.SGD), (AdamW, torch.optim.AdamW)])
def test_hooks_of_a_step_run_once(ours: Any, plain: Any) -> None:
    model = nn.Linear(2, 2)
    plain(model.parameters())  # from now on torch runs hooks around the step of this class
    optimiser, calls = ours(model), []
    optimiser.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimiser.register_step_post_hook(lambda *_: calls.append("post"))
    model(torch.randn(2, 2)).sum().backward()
    optimiser.step()
    assert calls == ["pre", "post"]


@pytest.mark.parametrize("make", [AdamW, LAMB, KFAC, Muon, lambda model: SGD(model, weight_decay=0.1)])
def test_a_step_with_a_sparse_gradient_is_left_out_and_that_is_said_once(make: Any) -> None:
    model = nn.Sequential(nn.Embedding(9, 4, sparse=True), nn.Linear(4, 4), nn.Linear(4, 4))
    optimiser = make(model)
    before = copy.deepcopy(model.state_dict())
    model(torch.tensor([1, 2])).square().sum().backward()
    with pytest.warns(RuntimeWarning, match="sparse=False"):
        optimiser.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimiser.step()
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_sgd_takes_sparse_gradients_as_torch_does() -> None:
    tables = []
    for make in (lambda table: SGD(table, lr=0.1), lambda table: torch.optim.SGD(table.parameters(), 0.1, momentum=0.9)):
        torch.manual_seed(0)
        table = nn.Embedding(9, 4, sparse=True)
        optimiser = make(table)
        for ids in ([1, 2, 2], [2, 5], [8]):
            optimiser.zero_grad()
            table(torch.tensor(ids)).square().sum().backward()
            optimiser.step()
        (table(torch.tensor([3])).sum() * float("nan")).backward()
        if isinstance(optimiser, SGD):
            optimiser.step()  # skipped
        tables.append(table.weight)
    assert torch.equal(*tables)


def test_a_copy_of_muon_with_its_model_goes_on_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    optimiser = Muon(model)
    twins = [(model, optimiser), copy.deepcopy((model, optimiser))]
    x = torch.randn(3, 4)
    for one, two in twins:
        one(x).square().sum().backward()
        two.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twins[1][0].parameters(), strict=True))
    twins[1][1].param_groups[0]["lr"] = 0.0  # the groups of the copy are those of its parts
    assert twins[1][1].parts[0].param_groups[0]["lr"] == 0.0
    assert optimiser.param_groups[0]["lr"] > 0
