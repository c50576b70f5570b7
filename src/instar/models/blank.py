"""Building a model without memory, so that the sizes that a file names are held to its tensors before anything is allocated."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from instar.errors import CheckpointError

_CALLS = 1000
"""Calls of torch for each saved tensor, of which building takes some tens."""


@contextlib.contextmanager
def without_memory(tensors: int, larger: str) -> Iterator[None]:
    """What is built inside has no memory. Raises CheckpointError(larger) where it is more than so many tensors can fill."""
    with torch.device("meta"), _Few(_CALLS * (1 + tensors), larger):
        yield


class _Few(TorchFunctionMode):
    """Allows so many calls of torch: a file may ask for more layers than it has tensors for."""

    def __init__(self, calls: int, larger: str) -> None:
        super().__init__()
        self.left, self.larger = calls, larger

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.left -= 1
        if self.left < 0:
            raise CheckpointError(self.larger)
        return func(*args, **(kwargs or {}))
