"""(IA)³: learnt vectors that scale keys, values and the inside of the FFN.

Liu, Tam, Muqeeth, Mohta, Huang, Bansal, Raffel, "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context
Learning", NeurIPS 2022 (arXiv 2205.05638).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import Tensor, nn

from instar.adapters import where as places
from instar.adapters.layer import AdapterLayer, LinearLayer
from instar.errors import AdapterError, ShapeError
from instar.interfaces import Adapter


class IA3(Adapter):
    """y = l ⊙ (W x + b) for keys and values, y = W (l ⊙ x) + b for the layer that ends the FFN;  l = 1 at birth.

    Args:
        feedforward: layers whose input is scaled, each (or one for all) by the last part of their names or a regular
            expression; None takes the layers that end an FFN, where `instar.anatomy` finds them. All others have their output
            scaled. lr: see `Adapter`.

    Trainable numbers of a layer: out, or in where the input is scaled. Time beside the layer: one multiplication a number.
    Raises ShapeError.
    """

    def __init__(self, *, feedforward: str | Sequence[str] | None = None, lr: float = 1e-2) -> None:
        if not 0 < lr < float("inf"):
            raise ShapeError(f"lr expects more than 0; received {lr}.")
        self.feedforward = [feedforward] if isinstance(feedforward, str) else feedforward
        self.lr = lr
        for pattern in self.feedforward or ():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ShapeError(f"feedforward expects names or regular expressions; {pattern!r} is neither: {error}.") from error

    def targets(self, model: nn.Module) -> list[str]:
        both = {*places.by_role(model, lambda block: (block.key, block.value), "key and value"), *_ends(model)}
        return [name for name, _ in model.named_modules() if name in both]

    def layers(self, model: nn.Module, names: Sequence[str]) -> dict[str, AdapterLayer]:
        ends = set(_ends(model)) if self.feedforward is None else {n for n in names if self._named(n)}
        return {name: IA3Layer(model.get_submodule(name), name in ends) for name in names}

    def layer(self, base: nn.Module, name: str) -> IA3Layer:
        return IA3Layer(base, self._named(name))

    def _named(self, name: str) -> bool:
        return any(places.matches(pattern, name) for pattern in self.feedforward or ())


def _ends(model: nn.Module) -> list[str]:
    """The layers that end an FFN; none in a model whose parts are not known."""
    try:
        return places.by_role(model, lambda block: (block.ffn_out,), "the end of the FFN")
    except AdapterError:
        return []


class IA3Layer(LinearLayer):
    """(IA)³ of one layer."""

    def __init__(self, base: nn.Module, feedforward: bool) -> None:
        super().__init__(base)
        self.feedforward = feedforward
        # The shapes of `peft`.
        self.ia3_l = self.tensor(1, self.inputs, value=1.0) if feedforward else self.tensor(self.outputs, 1, value=1.0)

    def forward(self, base: nn.Module, x: Tensor) -> Tensor:
        scale = self.ia3_l.flatten()
        if self.feedforward:
            y: Tensor = base((x * scale).to(x.dtype))
            return y
        y = base(x)
        return (y * scale).to(y.dtype)

    def weights(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        scaled = weight * self.ia3_l
        return scaled, bias if self.feedforward or bias is None else bias * self.ia3_l.flatten()
