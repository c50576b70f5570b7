"""Only the head learns: the other end of the scale."""

from __future__ import annotations

from torch import nn

from instar.adapters import where as places
from instar.adapters.copying import Copy
from instar.errors import AdapterError, ShapeError
from instar.interfaces import Adapter

HEADS = ("classifier", "score", "head", "qa_outputs", "pre_classifier", "classification_head", "lm_head", "embed_out")
"""What modules over the body of a model are called."""


class HeadOnly(Adapter):
    """y = head(body(x)), where a copy of the head learns and the body stays as it is.

    By default the head is what stands right under the model and has one of the usual names. lr: see `Adapter`.
    """

    noun = "module with parameters"
    replaces = True

    def __init__(self, *, lr: float = 5e-3) -> None:
        if not 0 < lr < float("inf"):
            raise ShapeError(f"lr expects more than 0; received {lr}.")
        self.lr = lr

    def takes(self, module: nn.Module) -> bool:
        return places.trains(module)

    def targets(self, model: nn.Module) -> list[str]:
        found = [name for name, module in model.named_children() if name in HEADS and self.takes(module)]
        if not found:
            raise AdapterError(
                f"{type(model).__name__} has no head of a usual name ({', '.join(HEADS)}). Name it with where=, or attach to "
                "the model that holds it."
            )
        return found

    def layer(self, base: nn.Module, name: str) -> Copy:
        return Copy(base)
