"""Full fine-tuning as an adapter: one end of the scale."""

from __future__ import annotations

from torch import nn

from instar.adapters import copying
from instar.adapters import where as places
from instar.adapters.copying import Copy
from instar.errors import ShapeError
from instar.interfaces import Adapter


class Full(Adapter):
    """f(x; θ), θ a copy of the weights, all of which learn.

    By default every module that holds parameters is copied, tied weights once. lr: see `Adapter`. Memory: a second model beside
    the first one, which stays to go back to.
    """

    noun = "module with parameters"
    replaces = True

    def __init__(self, *, lr: float = 1e-4) -> None:
        if not 0 < lr < float("inf"):
            raise ShapeError(f"lr expects more than 0; received {lr}.")
        self.lr = lr

    def takes(self, module: nn.Module) -> bool:
        return places.trains(module)

    def targets(self, model: nn.Module) -> list[str]:
        return copying.owners(model)

    def layer(self, base: nn.Module, name: str) -> Copy:
        return Copy(base)
