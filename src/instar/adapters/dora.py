"""DoRA: the direction of each row of the weight learns as LoRA does, its length by itself.

Liu, Wang, Yin, Molchanov, Wang, Cheng, Chen, "DoRA: Weight-Decomposed Low-Rank Adaptation", ICML 2024 (arXiv 2402.09353).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.adapters import ranks
from instar.adapters.lora import LoRA, LoRALayer
from instar.anatomy import Linear


class DoRA(LoRA):
    """y = m ⊙ (V x / ‖V‖) + b,  V = W + (alpha / r) B A,  ‖·‖ the length of each row, m = ‖W‖ at birth.

    ‖V‖ takes no gradient (the paper's section 4.3). Arguments as of `LoRA`. Trainable numbers of a layer: r (in + out) + out.
    Time beside the layer: that of LoRA and 2 r in · out FLOPs to form B A for its lengths. With dropout both terms read the x
    that was dropped, as in `peft`.
    """

    def __init__(
        self,
        *,
        r: int = 8,
        alpha: float = 16.0,
        dropout: float = 0.0,
        rank_pattern: Mapping[str, int] | None = None,
        lr: float = 2e-3,
    ) -> None:
        super().__init__(r=r, alpha=alpha, dropout=dropout, rank_pattern=rank_pattern, lr=lr)

    def layer(self, base: nn.Module, name: str) -> DoRALayer:
        rank = ranks.rank(self.r, self.rank_pattern, name)
        return DoRALayer(base, rank, self.alpha / rank, self.dropout)


class DoRALayer(LoRALayer):
    """DoRA of one layer."""

    file_names: ClassVar[Mapping[str, str]] = {**LoRALayer.file_names, "magnitude": "lora_magnitude_vector"}

    def __init__(self, base: nn.Module, r: int, scaling: float, dropout: float) -> None:
        super().__init__(base, r, scaling, dropout)
        self.magnitude = self.tensor(self.outputs)
        self.magnitude.data.copy_(torch.linalg.vector_norm(Linear("", base).weight.to(self.magnitude.dtype), dim=1))

    def ratio(self, weight: Tensor) -> Tensor:
        """m / ‖V‖ [out]."""
        direction = weight.detach() + self.scaling * (self.lora_B.detach() @ self.lora_A.detach())
        norm = torch.linalg.vector_norm(direction, dim=1)
        return torch.where(norm > 0, self.magnitude / norm.masked_fill(norm == 0, 1.0), 1.0)  # a row of zeros has no direction

    def forward(self, base: nn.Module, x: Tensor) -> Tensor:
        layer = Linear("", base)
        ratio = self.ratio(layer.weight)
        # A multiple of 0 at birth is added to the base's own output, so that this stays the same to the bit.
        y: Tensor = base(x)
        dropped = self.drop(x)
        plain = y if layer.bias is None else y - layer.bias
        if dropped is not x:
            plain = F.linear(dropped, layer.weight)
        return y + ((ratio - 1) * plain + ratio * self.increment(dropped)).to(y.dtype)

    def weights(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return self.ratio(weight)[:, None] * super().weights(weight, bias)[0], bias
