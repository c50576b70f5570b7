"""A memory of where thinking ended, from which later batches go on."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor


class ReplayBuffer:
    """First in, first out: the latest `capacity` sequences with the state in which their last training step ended.

    It is no part of a state dict: a model that is loaded, or a run that is resumed, begins with an empty one.
    """

    def __init__(self, capacity: int) -> None:
        self.rows: deque[tuple[Tensor, ...]] = deque(maxlen=capacity)

    def draw(self, count: int) -> tuple[Tensor, ...] | None:
        """At most `count` different rows, stacked; None where there is nothing."""
        if not self.rows or not count:
            return None
        order = torch.randperm(len(self.rows))[:count].tolist()
        return tuple(torch.stack(column) for column in zip(*(self.rows[i] for i in order), strict=True))

    def write(self, *columns: Tensor) -> None:
        """Rows of a batch go in, the oldest ones go."""
        self.rows.extend(zip(*(column.detach().clone() for column in columns), strict=True))
