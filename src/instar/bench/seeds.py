"""Named random streams: what is drawn for one purpose never shifts what is drawn for another, and the global generator is left
alone.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import torch


def derive(seed: int, name: str) -> int:
    """The seed (63 bits) of the stream `name`."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big") >> 1


def stream(seed: int, name: str) -> torch.Generator:
    """A fresh generator at the start of the stream `name`."""
    return torch.Generator().manual_seed(derive(seed, name))


@contextlib.contextmanager
def initialising(seed: int) -> Iterator[None]:
    """Modules built inside draw their weights from the stream "init"; afterwards the global generator is as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "init"))
        yield
