"""8-bit linear layers that run faster than float32 on a CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from instar.anatomy.linear import Linear, is_linear
from instar.compression import compressor, observing
from instar.compression.compressor import Compressor, Work
from instar.compression.int8_linear import WEIGHTS, Int8Linear
from instar.errors import ShapeError


class Int8(Compressor):
    """W8A8 with a scale for each output of a weight and each token of an activation, computed as integers: `Int8Linear`.

    Args:
        outliers: input channels of a layer that stay in float32: those with the largest |x| over `data` (batches that the model
            is called with) where `apply` gets any, else over random tokens of the model's own vocabulary, which show the same
            channels. A model that reads no tokens has none.
        embeddings: whether tables of embeddings are stored in 8 bits too (one scale a row): smaller, not faster.
        keep: regular expressions over names of layers that stay as they are.

    Everything else (norms, activations, attention) stays in float32, exact. Memory of a layer: a quarter.
    """

    method: ClassVar[str] = "int8"

    def __init__(self, *, outliers: int = 4, embeddings: bool = False, keep: Sequence[str] = ()) -> None:
        if outliers < 0:
            raise ShapeError(f"outliers expects a number of channels, 0 or more; received {outliers}.")
        self.outliers, self.embeddings = outliers, embeddings
        self.keep = compressor.checked_keep(keep)

    def takes(self, module: nn.Module) -> bool:
        return is_linear(module) or (self.embeddings and compressor.is_table(module))

    def prepare(self, model: nn.Module, chosen: Mapping[str, nn.Module], data: Any) -> Work:
        """Look at what the layers read."""
        if not self.outliers:
            return Work()
        layers = {name: module for name, module in chosen.items() if is_linear(module)}
        if data is not None:
            return Work(observing.largest(model, layers, data))
        try:
            return Work(observing.largest(model, layers, observing.random_tokens(model)))
        except Exception:  # a model that does not take a tensor of tokens alone may raise anything
            return Work()

    def replacement(self, name: str, module: nn.Module, work: Work) -> nn.Module:
        if isinstance(module, nn.Embedding):
            return compressor.stored(name, module, WEIGHTS, work)
        linear = Linear(name, module)
        columns = self._columns(work.largest.get(name), linear.weight.device)
        parts = compressor.checked(name, lambda: Int8Linear.parts_of(compressor.full(name, linear.weight), columns))
        return Int8Linear(parts, (linear.outputs, linear.inputs), linear.bias)

    def _columns(self, top: Tensor | None, device: torch.device) -> Tensor:
        """The channels of largest values, in order."""
        if top is None or not bool(torch.isfinite(top).all()):
            return torch.empty(0, dtype=torch.int64, device=device)
        return top.topk(min(self.outliers, len(top))).indices.sort().values
