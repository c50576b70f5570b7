"""LoRA: a product of two thin matrices beside the weight.

Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen, "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022
(arXiv 2106.09685).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from instar.adapters import ranks
from instar.adapters.layer import LinearLayer
from instar.interfaces import Adapter


class LoRA(Adapter):
    """y = W x + b + (alpha / r) B A x,  A [r, in] ~ Kaiming uniform (a = √5), B [out, r] = 0.

    Args:
        r: rank. alpha: scale, divided by the rank of the layer. dropout: on the x that A reads, in training.
        rank_pattern: layer -> another rank, by the last part of its name or a regular expression. lr: see `Adapter`.

    Trainable numbers of a layer: r (in + out). Time beside the layer: 2 T r (in + out) FLOPs forward, twice that backward.
    Raises ShapeError.
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
        ranks.require(r, rank_pattern, dropout, lr)
        self.r, self.alpha, self.dropout, self.rank_pattern, self.lr = r, alpha, dropout, rank_pattern, lr

    def layer(self, base: nn.Module, name: str) -> LoRALayer:
        rank = ranks.rank(self.r, self.rank_pattern, name)
        return LoRALayer(base, rank, self.alpha / rank, self.dropout)


class LoRALayer(LinearLayer):
    """LoRA of one layer."""

    file_names: ClassVar[Mapping[str, str]] = {"lora_A": "lora_A.weight", "lora_B": "lora_B.weight"}

    def __init__(self, base: nn.Module, r: int, scaling: float, dropout: float) -> None:
        super().__init__(base, dropout=dropout)
        self.scaling = scaling
        self.lora_A = self.tensor(r, self.inputs)
        self.lora_B = self.tensor(self.outputs, r)
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, base: nn.Module, x: Tensor) -> Tensor:
        y: Tensor = base(x)
        return y + self.increment(self.drop(x)).to(y.dtype)

    def increment(self, x: Tensor) -> Tensor:
        """(alpha / r) B A x."""
        return F.linear(F.linear(x.to(self.lora_A.dtype), self.lora_A) * self.scaling, self.lora_B)

    def weights(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight + self.scaling * (self.lora_B @ self.lora_A), bias

    def merged(self, base: nn.Module) -> dict[str, Tensor]:
        found = super().merged(base)
        found.pop("bias", None)
        return found
