"""Two processes with half a batch each make the steps of one process with all of it, whichever layers each of them uses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as processes
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from instar.optim.kfac import KFAC
from instar.optim.mkor import MKOR
from instar.optim.mkor_h import MKORH

_STEPS = 6


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3, bias=False))


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(12, 6, generator=generator), torch.randn(12, 3, generator=generator)


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    model = network()
    optimiser = MKOR(model, "sgd", lr=0.05, f=2, factor_dtype="float32")
    parallel = DistributedDataParallel(model)
    volume: list[int] = []
    original = dist.all_reduce

    def counted(tensor: Tensor, *args: object, **given: object) -> object:
        volume.append(tensor.numel())
        return original(tensor, *args, **given)

    dist.all_reduce = counted
    x, y = data()
    part = slice(6 * rank, 6 * rank + 6)
    for _ in range(_STEPS):
        F.mse_loss(parallel(x[part]), y[part]).backward()
        optimiser.step()
        optimiser.zero_grad()
    torch.save({"model": model.state_dict(), "factors": optimiser.factors, "volume": volume}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch was built without gloo")
def test_two_processes_are_one_with_the_joined_batch(tmp_path: Path) -> None:
    processes.spawn(worker, (str(tmp_path),), nprocs=2)
    model = network()
    optimiser = MKOR(model, "sgd", lr=0.05, f=2, factor_dtype="float32")
    x, y = data()
    for _ in range(_STEPS):
        F.mse_loss(model(x), y).backward()
        optimiser.step()
        optimiser.zero_grad()
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for key, tensor in model.state_dict().items():
            torch.testing.assert_close(found["model"][key], tensor, rtol=0, atol=1e-6)
        for name, pair in optimiser.factors.items():
            for ours, theirs in zip(pair, found["factors"][name], strict=True):
                torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)
        assert found["volume"] == [(6 + 1 + 8) + (8 + 3) + 2] * (_STEPS // 2)  # and of each layer whether it was used


class Experts(nn.Module):
    """Two layers, of which a call uses the one that it names; a third that nobody uses."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(6, 3), nn.Linear(6, 3, bias=False), nn.Linear(6, 3)])

    def forward(self, x: Tensor, which: int) -> Tensor:
        return self.layers[which](x)


def expert_worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found = {}
    for name in ("mkor", "kfac"):
        model = Experts()
        parallel = DistributedDataParallel(model, find_unused_parameters=True)
        optimiser = both(model)[name]
        x, y = data()
        for step in range(_STEPS):
            which = (rank + step) % 2
            part = slice(6 * which, 6 * which + 6)
            F.mse_loss(parallel(x[part], which), y[part]).backward()
            optimiser.step()
            optimiser.zero_grad()
        found[name] = model.state_dict()
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def both(model: nn.Module) -> dict[str, Any]:
    return {"mkor": MKOR(model, "sgd", lr=0.05, f=1, factor_dtype="float32"), "kfac": KFAC(model, lr=0.05, f=1)}


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch was built without gloo")
def test_processes_that_use_different_layers_make_the_steps_of_one_that_uses_both(tmp_path: Path) -> None:
    processes.spawn(expert_worker, (str(tmp_path),), nprocs=2)
    saved = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for name in ("mkor", "kfac"):
        model = Experts()
        optimiser = both(model)[name]
        optimiser.loss_scale = 0.5  # the mean over two processes of a loss that one of them has; each saw all of its own
        x, y = data()
        for _ in range(_STEPS):
            losses = [F.mse_loss(model(x[6 * i : 6 * i + 6], i), y[6 * i : 6 * i + 6]) for i in range(2)]
            (sum(losses) / 2).backward()  # type: ignore[union-attr]
            optimiser.step()
            optimiser.zero_grad()
        for key, tensor in model.state_dict().items():
            torch.testing.assert_close(saved[0][name][key], tensor, rtol=0, atol=1e-6)
            assert torch.equal(saved[0][name][key], saved[1][name][key])


def switching_worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    optimiser = MKORH(network(), window=4, patience=1)
    at = None
    for step in range(600):
        optimiser.observe(10.0 * 0.9**step if rank else 5.0 - min(step, 20) / 10)
        at = step if optimiser.switched is not None and at is None else at
    torch.save(at, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch was built without gloo")
def test_processes_switch_together(tmp_path: Path) -> None:
    """The losses that they see fall at rates of their own; one that switched alone would leave the others waiting."""
    processes.spawn(switching_worker, (str(tmp_path),), nprocs=2)
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert one == two is not None
