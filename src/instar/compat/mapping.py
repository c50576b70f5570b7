"""Maps: heads that leave the new encoder as it is and bring its vectors into the old one's space."""

from __future__ import annotations

import abc

import torch.nn.functional as F
from torch import Tensor

from instar.errors import ShapeError
from instar.interfaces import CompatibleHead


class Map(CompatibleHead):
    """A function after the new encoder: rows of the newest generation store its vectors as they are.

    A subclass says `bring`, from unit vectors of the new encoder to any length in the old space.
    """

    def __init__(self, new_dim: int, old_dim: int, *, input_dim: int | None = None) -> None:
        super().__init__()
        for name, value in (("new_dim", new_dim), ("old_dim", old_dim)):
            if value < 1:
                raise ShapeError(f"{name} expects 1 or more; received {value}.")
        if input_dim not in (None, new_dim):
            raise ShapeError(
                f"{type(self).__name__} reads the new vectors themselves, of width {new_dim}; received input_dim={input_dim}."
            )
        self.new_dim, self.old_dim, self.input_dim, self.full_dim = new_dim, old_dim, new_dim, new_dim

    @abc.abstractmethod
    def bring(self, x: Tensor) -> Tensor:
        """Unit vectors [N, D] -> [N, O]."""

    def compatible(self, x: Tensor) -> Tensor:
        """x [N, D] -> [N, O]; the length of x does not matter."""
        return self.bring(F.normalize(x, dim=1))

    def full(self, x: Tensor) -> Tensor:
        """x [N, D] -> [N, D], of length 1."""
        return F.normalize(x, dim=1)

    def lower(self, full: Tensor, generation: int) -> Tensor:
        """Through this map, then through those of the updates before it."""
        if not 0 <= generation <= self.newest:
            raise ShapeError(f"{type(self).__name__} knows generations 0 to {self.newest}, received {generation}.")
        if generation == self.newest:
            return full
        found = self.compatible(full)
        if self.previous is None or generation == self.newest - 1:
            return found
        return self.previous.lower(F.normalize(found, dim=1), generation)
