"""Two processes train as one does, and their checkpoints are interchangeable."""

from __future__ import annotations

from pathlib import Path

import parallel_training as world
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from instar.bench.parallel import Group
from instar.errors import ShapeError
from instar.mixers.ecoformer import Ecoformer

pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch was built without gloo")


def two(folder: Path, parallel: str, *, stop: int = 0, checkpoint: str = "") -> tuple[list[float], dict[str, Tensor]]:
    torch.multiprocessing.spawn(world.main, (str(folder), parallel, stop, checkpoint), nprocs=2)
    found: tuple[list[float], dict[str, Tensor]] = torch.load(folder / f"{parallel}-{stop}.pt")
    return found


def near(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_are_one(tmp_path: Path, parallel: str) -> None:
    """Losses and weights of two are those of one with twice the micro-batches; so are those of a run that goes on in one."""
    losses, net = world.train(accumulate=2)
    found, weights = two(tmp_path, parallel)
    assert found == pytest.approx(losses, rel=1e-4)
    near(weights, net.state_dict())

    folder = tmp_path / "progress"
    begun, _ = two(tmp_path, parallel, stop=5, checkpoint=str(folder))
    rest, net = world.train(accumulate=2, checkpoint=folder)
    assert (len(begun), len(rest)) == (5, 7)
    assert begun + rest == pytest.approx(losses, rel=1e-4)
    near(weights, net.state_dict())


def test_one_process_hands_over_to_shards(tmp_path: Path) -> None:
    losses, net = world.train(accumulate=2)
    folder = tmp_path / "progress"
    begun, _ = world.train(accumulate=2, checkpoint=folder, stop=6)
    rest, weights = two(tmp_path, "fsdp", checkpoint=str(folder))
    assert begun + rest == pytest.approx(losses, rel=1e-4)
    near(weights, net.state_dict())


def test_what_cannot_be_done_is_said() -> None:
    with pytest.raises(ShapeError, match="torchrun"):
        world.train(parallel="ddp")
    with pytest.raises(ShapeError, match="ddp, fsdp"):
        world.train(parallel="tensor")
    with pytest.raises(ShapeError, match="groups"):
        world.train(parallel="fsdp", groups=[])
    together = Group("none")
    together.way = "ddp"
    with pytest.raises(ShapeError, match="hash functions"):
        together.prepare(nn.Sequential(Ecoformer(8, heads=2)))
