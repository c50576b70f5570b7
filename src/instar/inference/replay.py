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

    def draw(self, count: int, shape: torch.Size) -> tuple[Tensor, ...] | None:
        """At most `count` different rows of sequences of that shape, stacked; None where there are none."""
        alike = [row for row in self.rows if row[0].shape == shape]
        if not alike or not count:
            return None
        order = torch.randperm(len(alike))[:count].tolist()
        return tuple(torch.stack(column) for column in zip(*(alike[i] for i in order), strict=True))

    def write(self, *columns: Tensor) -> None:
        """Rows of a batch go in, the oldest ones go."""
        self.rows.extend(zip(*(column.detach().clone() for column in columns), strict=True))
