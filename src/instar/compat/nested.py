"""Heads whose compatible part is the prefix of their full vector, so that old and new rows can share an index."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from instar.errors import ShapeError
from instar.interfaces import CompatibleHead


class NestedHead(CompatibleHead):
    """The first `old_dim` coordinates of `full(x)` are compared with stored vectors of the generation before.

    In a sequence of updates the prefixes nest: those of that part are comparable with still older generations, as far as the
    heads before are nested too.
    """

    nested: ClassVar[bool] = True

    def __init__(self, new_dim: int, old_dim: int, full_dim: int, input_dim: int | None = None) -> None:
        super().__init__()
        input_dim = new_dim if input_dim is None else input_dim
        for name, value in (("new_dim", new_dim), ("old_dim", old_dim), ("input_dim", input_dim)):
            if value < 1:
                raise ShapeError(f"{name} expects 1 or more; received {value}.")
        self.new_dim, self.old_dim, self.input_dim, self.full_dim = new_dim, old_dim, input_dim, full_dim

    def compatible(self, x: Tensor) -> Tensor:
        """x [N, input_dim] -> [N, old_dim]"""
        return self.full(x)[:, : self.old_dim]

    def lower(self, full: Tensor, generation: int) -> Tensor:
        """The prefix of the generation before, then what the head before makes of it."""
        if not 0 <= generation <= self.newest:
            raise ShapeError(f"{type(self).__name__} knows generations 0 to {self.newest}, received {generation}.")
        if generation == self.newest:
            return full
        found = full[:, : self.old_dim]
        if self.previous is None or generation == self.newest - 1:
            return found
        return self.previous.lower(F.normalize(found, dim=1), generation)
