"""What each of two processes runs: training in parallel, its losses and weights written by rank 0."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from instar.bench.fit import fit
from instar.bench.seeds import initialising, stream


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(7, 10)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(10, 10), nn.Tanh(), nn.Dropout(0.2)) for _ in range(2)])
        self.last = nn.Linear(10, 1)
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        found: Tensor = self.last(x)
        return found


def batch(index: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(16, 7, generator=stream(0, f"x/{index}"))
    return x, x[:, :1]


def loss(net: nn.Module, data: tuple[Tensor, Tensor]) -> Tensor:
    found: Tensor = (net(data[0]) - data[1]).square().mean()
    return found


def train(**changes: Any) -> tuple[list[float], nn.Module]:
    with initialising(0):
        net = Net()
    losses: list[float] = []
    stop = changes.pop("stop", 0)

    def monitor(step: int, value: float) -> bool:
        losses.append(value)
        return step == stop

    fit(net, batch, loss, **{"steps": 12, "lr": 1e-2, "monitor": monitor, **changes})
    return losses, net


def main(rank: int, folder: str, parallel: str, stop: int, checkpoint: str) -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting-{parallel}-{stop}", rank=rank, world_size=2)
    losses, net = train(parallel=parallel, stop=stop, checkpoint=Path(checkpoint) if checkpoint else None)
    weights = {name: t.full_tensor() if hasattr(t, "full_tensor") else t for name, t in net.state_dict().items()}
    if rank == 0:
        torch.save((losses, weights), f"{folder}/{parallel}-{stop}.pt")
    del net, weights
    gc.collect()  # shards hold their processes: torch aborts now and then where they are still there at the end
    dist.destroy_process_group()
