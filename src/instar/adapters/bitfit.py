"""BitFit: biases alone.

Ben Zaken, Goldberg, Ravfogel, "BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked Language-models",
ACL 2022 (arXiv 2106.10199).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from instar.adapters import where as places
from instar.adapters.layer import AdapterLayer
from instar.errors import AdapterError, ShapeError
from instar.interfaces import Adapter


class BitFit(Adapter):
    """y = f(x) + δ for every linear layer and norm f that has a bias;  δ = 0 at birth.

    lr: see `Adapter`. Trainable numbers of a layer: out. The increment δ learns as the bias itself would, and the base stays
    as it is. Raises AdapterError for a model without biases (Llama and most of its kind).
    """

    noun = "layer with a bias"

    def __init__(self, *, lr: float = 5e-3) -> None:
        if not 0 < lr < float("inf"):
            raise ShapeError(f"lr expects more than 0; received {lr}.")
        self.lr = lr

    def takes(self, module: nn.Module) -> bool:
        bias = getattr(module, "bias", None)
        norm = "norm" in type(module).__name__.lower() and isinstance(getattr(module, "weight", None), nn.Parameter)
        return isinstance(bias, nn.Parameter) and (norm or places.linear(module))

    def targets(self, model: nn.Module) -> list[str]:
        found = [name for name, module in model.named_modules() if name and self.takes(module)]
        if not found:
            raise AdapterError(f"{type(model).__name__} has no biases to adapt. Take another method, such as lora.")
        return found

    def layer(self, base: nn.Module, name: str) -> BitFitLayer:
        return BitFitLayer(base)


class BitFitLayer(AdapterLayer):
    """BitFit of one layer."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        bias = base.bias
        assert isinstance(bias, nn.Parameter)
        self.shift = nn.Parameter(torch.zeros_like(bias, dtype=torch.promote_types(bias.dtype, torch.float32)))

    def forward(self, base: nn.Module, x: Tensor) -> Tensor:
        y: Tensor = base(x)
        return (y + self.shift).to(y.dtype)

    def merged(self, base: nn.Module) -> dict[str, Tensor]:
        bias = base.bias
        assert isinstance(bias, nn.Parameter)
        return {"bias": (bias + self.shift).to(bias.dtype)}
