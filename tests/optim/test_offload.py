"""Offloaded AdamW: the bits of torch's own, whatever is cut, streamed, delayed or changed on the way; what is refused."""

from __future__ import annotations

import copy
import gc
import io
import os
import random
import resource
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from offload_runs import FINE, batch, network, pair, same, train
from torch import Tensor, nn

from instar.errors import BudgetError, CheckpointError, ShapeError, StoreError, UnknownNameError
from instar.optim.adamw import AdamW
from instar.optim.offload import exporting
from instar.optim.offload.media import Medium
from instar.optim.offload.store import StoreSpec
from instar.optim.offloaded_adamw import OffloadedAdamW


class Delayed(Medium):
    """A store whose transfers take as long as chance has it."""

    def __init__(self, inner: Medium, seed: int) -> None:
        self.inner, self.random, self.new = inner, random.Random(seed), inner.new

    def read(self, offset: int, buffer: Tensor) -> None:
        time.sleep(self.random.random() * 2e-3)
        self.inner.read(offset, buffer)

    def write(self, offset: int, buffer: Tensor) -> None:
        time.sleep(self.random.random() * 2e-3)
        self.inner.write(offset, buffer)

    def sync(self) -> None:
        self.inner.sync()

    def close(self) -> None:
        self.inner.close()


@pytest.mark.parametrize("schedule", ["interleaved", "pipelined", "sequential"])
@pytest.mark.parametrize("ratio", [0.0, 0.4, 1.0])
@pytest.mark.parametrize(("alternate", "buffers"), [(True, 3), (False, 1), (True, 1), (False, 4)])
def test_equal_to_torch_to_the_bit(schedule: Any, ratio: float, alternate: bool, buffers: int) -> None:
    model, plain, other, ours = pair(schedule=schedule, ratio=ratio, alternate=alternate, buffers=buffers, subgroup=700)
    train(model, plain, 5)
    train(other, ours, 5)
    assert same(model, other)
    assert ours.made == 5
    ours.close()


@pytest.mark.parametrize("subgroup", [1, 64, 999, 10**6])
@pytest.mark.parametrize("k", ["auto", 2, 7])
def test_neither_subgroups_nor_interval_change_a_bit(subgroup: int, k: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 3))
    other = copy.deepcopy(model)
    plain, ours = AdamW(model), OffloadedAdamW(other, subgroup=subgroup, k=k, ratio=0.5)
    for step in range(3):
        for net, optimiser in ((model, plain), (other, ours)):
            torch.manual_seed(step)
            net(torch.randn(4, 5)).square().mean().backward()
            optimiser.step()
            optimiser.zero_grad()
    assert same(model, other)


@pytest.mark.parametrize("mode", ["buffered", "direct", "mmap", "throttled"])
def test_every_mode_of_the_store(mode: Any, tmp_path: Path) -> None:
    model, plain, other, ours = pair(store=StoreSpec(tmp_path, mode, rate=1e9), **FINE)
    train(model, plain, 4)
    train(other, ours, 4)
    assert same(model, other)
    assert ours.engine.store.medium.emulated == (mode == "throttled")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_of_parameters(dtype: torch.dtype) -> None:
    model, plain, other, ours = pair(dtype, **FINE)
    train(model, plain, 4)
    train(other, ours, 4)
    assert same(model, other)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_half_precision_is_equal_to_torch_to_the_bit(decay: float) -> None:
    """With an ε that float16 holds: below it both divide by zero."""
    whole, cut = (nn.Parameter(torch.linspace(-1, 1, 1001).half()) for _ in range(2))
    plain = torch.optim.AdamW([whole], 1e-2, eps=1e-4, weight_decay=decay, foreach=True)
    ours = OffloadedAdamW([cut], lr=1e-2, eps=1e-4, weight_decay=decay, subgroup=37, ratio=0.5)
    for seed in range(5):
        whole.grad = torch.randn(1001, generator=torch.Generator().manual_seed(seed)).half()
        cut.grad = whole.grad.clone()
        plain.step()
        ours.step()
    assert bool(whole.isfinite().all())
    assert torch.equal(whole, cut)


@pytest.mark.parametrize("seed", range(3))
def test_timing_of_transfers_changes_nothing(seed: int) -> None:
    model, plain, other, ours = pair(subgroup=500, buffers=3, ratio=0.6)
    ours.engine.store.medium = Delayed(ours.engine.store.medium, seed)
    train(model, plain, 6)
    train(other, ours, 6)
    assert same(model, other)


def test_k_may_change_in_the_middle() -> None:
    model, plain, other, ours = pair(**FINE)
    for first, k in enumerate((2, 5, "auto", 3)):
        ours.k = k  # type: ignore[assignment]
        train(model, plain, 1, first)
        train(other, ours, 1, first)
    assert same(model, other)
    assert set(ours.engine.steps) == {4}


def test_clipping_and_accumulation_are_exact() -> None:
    model, plain, other, ours = pair(max_norm=0.05, **FINE)
    for step in range(4):
        for part in range(3):
            for net in (model, other):
                x, y = batch(3 * step + part)
                F.mse_loss(net(x), y).backward()
        # In the order of the groups, which is that of the sum under the norm.
        nn.utils.clip_grad_norm_([p for group in plain.param_groups for p in group["params"]], 0.05)
        for optimiser in (plain, ours):
            optimiser.step()
            optimiser.zero_grad()
    assert same(model, other)


def test_groups_keep_their_own_settings_and_subgroups_are_never_cut_across_them() -> None:
    model = network()
    other = copy.deepcopy(model)

    def groups(net: nn.Module) -> list[dict[str, Any]]:
        params = list(net.parameters())
        return [
            {"params": params[:3], "lr": 1e-2, "weight_decay": 0.3},
            {"params": params[3:5], "betas": (0.5, 0.9)},
            {"params": params[5:], "eps": 1e-3, "lr": 3e-4},
        ]

    plain = torch.optim.AdamW(groups(model), foreach=True)
    ours = OffloadedAdamW(groups(other), **FINE)
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(o, 5) for o in (plain, ours)]
    for step in range(5):
        train(model, plain, 1, step)
        train(other, ours, 1, step)
        for schedule in schedules:
            schedule.step()
    assert same(model, other)
    layout = ours.engine.layout
    owner = [0, 0, 0, 1, 1, 2, 2, 2]
    assert all(owner[piece.index] == subgroup.group for subgroup in layout.subgroups for piece in subgroup.pieces)
    assert sum(piece.length for s in layout.subgroups for piece in s.pieces) == sum(p.numel() for p in model.parameters())


def test_a_further_group_joins() -> None:
    model = network()
    other = copy.deepcopy(model)
    nets = (
        (model, torch.optim.AdamW(list(model[0].parameters()), foreach=True)),
        (other, OffloadedAdamW(other[0].parameters(), **FINE)),
    )
    for net, optimiser in nets:
        train(net, optimiser, 2)
        optimiser.add_param_group({"params": list(net[3].parameters()), "lr": 1e-2})
        train(net, optimiser, 3, 2)
    assert same(model, other)


@pytest.mark.parametrize(
    ("group", "error"),
    [([nn.Parameter(torch.zeros(300, 300))], BudgetError), ([nn.Parameter(torch.zeros(4, 3).T)], ShapeError)],
    ids=["budget", "layout"],
)
def test_a_group_that_does_not_fit_changes_nothing(group: list[nn.Parameter], error: type[Exception]) -> None:
    model = network()
    other = copy.deepcopy(model)
    plain = torch.optim.AdamW(model.parameters(), foreach=True, weight_decay=0.0)
    ours = OffloadedAdamW(other.parameters(), ratio=0.0, budget_bytes=140_000, weight_decay=0.0)
    train(model, plain, 2)
    train(other, ours, 2)
    with pytest.raises(error):
        ours.add_param_group({"params": group})
    assert len(ours.param_groups) == 1
    train(model, plain, 3, 2)
    train(other, ours, 3, 2)
    assert same(model, other)


def test_a_group_for_which_the_disk_has_no_room_changes_nothing(tmp_path: Path) -> None:
    model = network()
    other = copy.deepcopy(model)
    plain = torch.optim.AdamW(model.parameters(), foreach=True, weight_decay=0.0)
    ours = OffloadedAdamW(other.parameters(), weight_decay=0.0, store=tmp_path, **FINE)
    train(model, plain, 2)
    train(other, ours, 2)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        with pytest.raises(StoreError, match="no room"):
            ours.add_param_group({"params": [nn.Parameter(torch.zeros(300, 300))]})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(ours.param_groups) == 1
    train(model, plain, 3, 2)
    train(other, ours, 3, 2)
    assert same(model, other)


def test_parameters_without_gradients_keep_their_own_count_of_steps() -> None:
    model, plain, other, ours = pair(**FINE)
    for step in range(6):
        for net, optimiser in ((model, plain), (other, ours)):
            x, y = batch(step)
            F.mse_loss(net(x), y).backward()
            if step % 2:
                net[3].weight.grad = None
            if step in (2, 3):  # whole subgroups rest
                net[0].weight.grad = net[0].bias.grad = None
            optimiser.step()
            optimiser.zero_grad()
    assert same(model, other)
    assert sorted(set(ours.engine.steps)) == [3, 4, 6]


def test_frozen_parameters_stay() -> None:
    model = network()
    model[0].requires_grad_(False)
    ours = OffloadedAdamW(model.parameters(), **FINE)
    before = model[0].weight.detach().clone()
    train(model, ours, 2)
    assert torch.equal(before, model[0].weight)
    assert set(ours.engine.steps) == {0, 2}


def test_a_step_without_any_gradient_is_none() -> None:
    ours = OffloadedAdamW(network(), **FINE)
    ours.step()
    assert (ours.made, ours.state_dict()["state"]) == (0, {})


def test_a_sparse_gradient_skips_the_step_and_is_said() -> None:
    table = nn.Embedding(9, 4, sparse=True)
    ours = OffloadedAdamW(table)
    before = table.weight.detach().clone()
    table(torch.tensor([1, 2])).sum().backward()
    with pytest.warns(RuntimeWarning, match="skipped whole"):
        ours.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours.step()  # said once
    assert ours.skipped == 2
    assert torch.equal(before, table.weight)


def test_the_state_goes_to_plain_adamw_and_back(tmp_path: Path) -> None:
    model, plain, other, ours = pair(**FINE)
    train(model, plain, 3)
    train(other, ours, 3)
    ours.save(tmp_path / "state.safetensors")
    file = io.BytesIO()
    torch.save(ours.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    for number, entry in plain.state_dict()["state"].items():
        for key, value in entry.items():
            assert torch.equal(value, saved["state"][number][key]), (number, key)
            assert value.dtype == saved["state"][number][key].dtype
    there = torch.optim.AdamW([{"params": g["params"]} for g in other_groups(other)], foreach=True)
    there.load_state_dict(exporting.read(tmp_path / "state.safetensors"))
    assert [g["weight_decay"] for g in there.param_groups] == [g["weight_decay"] for g in ours.param_groups]
    train(model, plain, 2, 3)
    train(other, there, 2, 3)
    assert same(model, other)
    back = OffloadedAdamW(other, subgroup=333, ratio=1.0)
    back.load_state_dict(there.state_dict())
    train(model, plain, 2, 5)
    train(other, back, 2, 5)
    assert same(model, other)
    again = OffloadedAdamW(network(), **FINE)
    again.load(tmp_path / "state.safetensors")
    assert set(again.engine.steps) == {3}


def other_groups(model: nn.Module) -> list[dict[str, Any]]:
    every = list(model.parameters())
    return [{"params": [p for p in every if p.dim() >= 2]}, {"params": [p for p in every if p.dim() < 2]}]


def test_exported_files_are_safetensors(tmp_path: Path) -> None:
    import safetensors.torch

    ours = OffloadedAdamW(net := network(torch.bfloat16), **FINE)
    train(net, ours, 2)
    ours.save(tmp_path / "state.safetensors")
    found = safetensors.torch.load_file(tmp_path / "state.safetensors")
    for number, entry in ours.state_dict()["state"].items():
        assert all(torch.equal(found[f"state.{number}.{key}"], value) for key, value in entry.items())


def test_states_that_do_not_fit_are_refused_and_change_nothing(tmp_path: Path) -> None:
    _, _, model, ours = pair(**FINE)
    train(model, ours, 1)
    before = copy.deepcopy(ours.state_dict())
    foreign = OffloadedAdamW(nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 3), nn.Linear(3, 3)))
    ams = torch.optim.AdamW(other_groups(network()), amsgrad=True)
    for wrong in (foreign.state_dict() | {"state": before["state"] and {0: {"step": torch.tensor(1.0)}}}, ams.state_dict(), {}):
        with pytest.raises(CheckpointError):
            ours.load_state_dict(wrong)
    (tmp_path / "none.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(CheckpointError, match="Nothing was loaded"):
        ours.load(tmp_path / "none.safetensors")
    after = ours.state_dict()
    assert all(torch.equal(v, after["state"][n][k]) for n, e in before["state"].items() for k, v in e.items())


def test_budget_is_kept_and_a_small_one_says_the_least_that_works() -> None:
    model = network()
    with pytest.raises(BudgetError, match="The least that works") as told:
        OffloadedAdamW(model, budget_bytes=20_000, subgroup=700)
    least = int(str(told.value).partition("elements is ")[2].partition(";")[0])
    OffloadedAdamW(model, budget_bytes=least, subgroup=700)
    with pytest.raises(BudgetError):
        OffloadedAdamW(model, budget_bytes=least - 1, subgroup=700)
    for budget in (least, 2 * least, 4 * least):
        ours = OffloadedAdamW(model, budget_bytes=budget, subgroup=700)
        train(model, ours, 2)
        ours.state_dict()
        assert ours.memory_bytes <= ours.engine.memory.peak <= budget
    residents = [OffloadedAdamW(model, budget_bytes=b, subgroup=700).engine.division.residents for b in (least, 2 * least)]
    assert residents[0] == 0 < residents[1]


def test_all_in_memory_streams_nothing() -> None:
    ours = OffloadedAdamW(model := network(), ratio=0.0)
    train(model, ours, 2)
    assert ours.engine.division.streamed == ours.engine.division.buffers == 0


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"k": 1}, ShapeError),
        ({"k": 2.5}, ShapeError),
        ({"ratio": 1.5}, ShapeError),
        ({"buffers": 0}, ShapeError),
        ({"subgroup": -3}, ShapeError),
        ({"lr": -1.0}, ShapeError),
        ({"max_norm": 0.0}, ShapeError),
        ({"schedule": "random"}, UnknownNameError),
        ({"commit_every": 1}, StoreError),
        ({"store": StoreSpec(None, "tape")}, UnknownNameError),  # type: ignore[arg-type]
        ({"store": StoreSpec(None, "throttled", 0.0)}, StoreError),
        ({"store": "/no/such/folder/file"}, StoreError),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        OffloadedAdamW(network(), **arguments)


def test_parameters_that_cannot_be_cut() -> None:
    with pytest.raises(ShapeError, match="not contiguous"):
        OffloadedAdamW([nn.Parameter(torch.zeros(4, 5).T)])
    with pytest.raises(ShapeError, match="in main memory"):
        OffloadedAdamW(nn.Linear(3, 3, device="meta"))
    with pytest.raises(ShapeError, match="dense floating-point"):
        OffloadedAdamW([nn.Parameter(torch.zeros(4, dtype=torch.complex64))])


def test_a_failing_disk_stops_training_and_says_so() -> None:
    _, _, model, ours = pair(subgroup=700, ratio=1.0)
    train(model, ours, 1)
    ours.engine.staging.settle()
    medium = ours.engine.store.medium

    class Failing(Delayed):
        def read(self, offset: int, buffer: Tensor) -> None:
            raise StoreError("the disk is gone")

    ours.engine.store.medium = Failing(medium, 0)
    with pytest.raises(StoreError, match="the disk is gone"):
        train(model, ours, 1)
    with pytest.raises(StoreError, match="between two steps"):
        train(model, ours, 1)


def test_nothing_is_left_running() -> None:
    before = threading.active_count()
    for _ in range(3):
        _, _, model, ours = pair(**FINE)
        train(model, ours, 2)
        ours.close()
        with pytest.raises(StoreError, match="closed"):
            ours.step()
    gc.collect()
    assert threading.active_count() <= before


def test_an_optimiser_that_is_forgotten_frees_its_file(tmp_path: Path) -> None:
    def held() -> list[str]:
        return [name for link in Path("/proc/self/fd").iterdir() if str(tmp_path) in (name := os.path.realpath(link))]

    _, _, model, ours = pair(store=tmp_path, **FINE)
    train(model, ours, 2)
    assert held()
    del ours
    gc.collect()
    time.sleep(0.05)  # its threads end by themselves
    gc.collect()
    assert not held()
