"""A growth as one update of a model and of its optimiser: all of it or nothing, and the way back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from instar.growth.optimiser import Kept
from instar.receipt import Receipt, updating


@dataclass(frozen=True)
class Grown:
    """What was done: a receipt of the model, and the optimiser as it was."""

    receipt: Receipt
    _kept: Kept

    def undo(self) -> None:
        """The model before to the bit, and its optimiser. Raises ReceiptError where the model was changed since."""
        self.receipt.undo()
        self._kept.restore()


class Growing:
    """A growth under way."""

    def __init__(self, model: nn.Module, optimiser: torch.optim.Optimizer | None) -> None:
        self.kept = Kept(optimiser, model)
        self._grown: Grown | None = None

    @property
    def grown(self) -> Grown:
        """What was done, once the block has ended well."""
        assert self._grown is not None, "a growth is known when its block has ended"
        return self._grown


@contextlib.contextmanager
def growing(
    model: nn.Module, optimiser: torch.optim.Optimizer | None, *, method: str, settings: Mapping[str, Any]
) -> Iterator[Growing]:
    """Replace and add parameters inside the block; an error or Ctrl-C puts model and optimiser back.

    Parameters are replaced, never written, so that memory beyond the model is what is new. Raises what `updating` raises, and
    TransformError for an optimiser of another model.
    """
    work = Growing(model, optimiser)
    try:
        with updating(model, method=method, settings=settings, changes=()) as update, torch.no_grad():
            yield work
            work.kept.rename(model)
        work._grown = Grown(update.receipt, work.kept)
    except BaseException:
        work.kept.restore()
        raise
