"""A small network, its batches, training, and whole runs for processes of their own, which tests of offloaded state share."""

from __future__ import annotations

import copy
import email
import itertools
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.models.decoder import Decoder
from instar.optim.adamw import AdamW
from instar.optim.offload.media import File
from instar.optim.offloaded_adamw import OffloadedAdamW

FINE: dict[str, Any] = {"subgroup": 700, "buffers": 2, "ratio": 0.5}
"""Many small subgroups, cut through matrices, half of them streamed."""


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(24, 70), nn.Tanh(), nn.LayerNorm(70), nn.Linear(70, 61), nn.Tanh(), nn.Linear(61, 9)]
    return nn.Sequential(*layers).to(dtype)


def batch(number: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(number)
    return torch.randn(16, 24, generator=generator).to(dtype), torch.randn(16, 9, generator=generator).to(dtype)


def train(model: nn.Module, optimiser: torch.optim.Optimizer, steps: int, first: int = 0, accumulate: int = 1) -> None:
    for step in range(first, first + steps):
        for part in range(accumulate):
            x, y = batch(step * accumulate + part, next(model.parameters()).dtype)
            F.mse_loss(model(x), y).backward()
        optimiser.step()
        optimiser.zero_grad()


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def pair(dtype: torch.dtype = torch.float32, **arguments: Any) -> tuple[nn.Module, AdamW, nn.Module, OffloadedAdamW]:
    model = network(dtype)
    other = copy.deepcopy(model)
    return model, AdamW(model), other, OffloadedAdamW(other, **arguments)


def killed_run(folder: str, steps: int, write: int) -> None:
    """Train on a store with a name, from its last commit on, and die in the middle of a write, the n-th (0: never)."""
    torch.set_num_threads(1)
    whole, done = File.write, itertools.count(1)

    def halves(self: File, offset: int, buffer: Tensor) -> None:
        half = len(buffer) // 2 // 4096 * 4096
        whole(self, offset, buffer[:half])
        if next(done) == write:
            os.kill(os.getpid(), signal.SIGKILL)
        whole(self, offset + half, buffer[half:])

    File.write = halves  # type: ignore[method-assign]
    model = network()
    optimiser = OffloadedAdamW(model, store=Path(folder) / "state", commit_every=2, **FINE)
    train(model, optimiser, steps - optimiser.made, optimiser.made)
    torch.save(model.state_dict(), Path(folder) / "weights.pt")


def reader_of_text(arguments: dict[str, Any] | None, steps: int, ready: Callable[[], None] = lambda: None) -> nn.Module:
    """A decoder of ten million weights that learns the source of Python's `email`; plain AdamW where there are no arguments.

    ready: called when the model and its gradients are in memory, and no state yet.
    """
    torch.set_num_threads(1)
    text = b"".join(path.read_bytes() for path in sorted(Path(email.__file__).parent.glob("*.py")))
    torch.manual_seed(0)
    model = Decoder(256, 320, 8, "softmax", heads=5)

    def loss(step: int) -> Tensor:
        row = torch.tensor(list(text[64 * step : 64 * step + 65]))[None]
        return F.cross_entropy(model(row[:, :-1])[0].flatten(0, 1), row[0, 1:])

    loss(0).backward()
    model.zero_grad(set_to_none=False)
    ready()
    optimiser = AdamW(model) if arguments is None else OffloadedAdamW(model, **arguments)
    for step in range(steps):
        loss(step).backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=False)
    return model


def limited_run(arguments: dict[str, Any] | None, steps: int, room: int, folder: str) -> None:
    """`reader_of_text`, in a process that may take no more than `room` bytes once its model and gradients are there."""

    def limit() -> None:
        taken = int(Path("/proc/self/status").read_text("ascii").partition("VmData:")[2].split()[0]) * 1024
        resource.setrlimit(resource.RLIMIT_DATA, (taken + room, taken + room))
        Path(folder, "ready").touch()

    model = reader_of_text(arguments, steps, limit)
    torch.save(model.state_dict(), Path(folder) / "weights.pt")
