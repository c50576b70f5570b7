"""One seed a run; what is random draws from a stream of its own, by name, and never from the global generator."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import torch


def derive(seed: int, name: str) -> int:
    """A 63-bit seed for the stream `name` of the run `seed`."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big") >> 1


def stream(seed: int, name: str) -> torch.Generator:
    """A generator of its own for one purpose: `stream(3, "data/17")`."""
    return torch.Generator().manual_seed(derive(seed, name))


@contextlib.contextmanager
def initialising(seed: int) -> Iterator[None]:
    """Weights made inside depend on the seed alone; torch's initialisers know only the global generator, which is put back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "init"))
        yield
