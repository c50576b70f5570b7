"""HiRA: a product of two thin matrices that multiplies the weight element by element.

Huang, Ko, Zhuang, Tang, Zhang, "HiRA: Parameter-Efficient Hadamard High-Rank Adaptation for Large Language Models", ICLR 2025.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from instar.adapters import ranks
from instar.adapters.layer import LinearLayer
from instar.anatomy import Linear
from instar.interfaces import Adapter


class HiRA(Adapter):
    """y = (W + W ⊙ B A) x + b,  A [r, in] ~ Kaiming uniform (a = √5), B [out, r] = 0.

    Args:
        r: rank of B A; the change of W may have any rank. dropout: on the x that the change reads, in training.
        rank_pattern: as of `LoRA`. lr: see `Adapter`.

    Trainable numbers of a layer: r (in + out). Time beside the layer: 2 r in · out FLOPs to form B A, and in training the
    dense gradient of W, 2 T in · out, as full fine-tuning. Without dropout one matrix product gives both terms, where `peft`
    makes two. Raises ShapeError.
    """

    def __init__(
        self,
        *,
        r: int = 32,
        dropout: float = 0.0,
        rank_pattern: Mapping[str, int] | None = None,
        lr: float = 5e-3,
    ) -> None:
        ranks.require(r, rank_pattern, dropout, lr)
        self.r, self.dropout, self.rank_pattern, self.lr = r, dropout, rank_pattern, lr

    def layer(self, base: nn.Module, name: str) -> HiRALayer:
        return HiRALayer(base, ranks.rank(self.r, self.rank_pattern, name), self.dropout)


class HiRALayer(LinearLayer):
    """HiRA of one layer."""

    def __init__(self, base: nn.Module, r: int, dropout: float) -> None:
        super().__init__(base, dropout=dropout)
        self.hira_A = self.tensor(r, self.inputs)
        self.hira_B = self.tensor(self.outputs, r)
        nn.init.kaiming_uniform_(self.hira_A, a=math.sqrt(5))

    def forward(self, base: nn.Module, x: Tensor) -> Tensor:
        dropped = self.drop(x)
        if dropped is x:
            return super().forward(base, x)
        y: Tensor = base(x)
        weight = Linear("", base).weight
        return y + F.linear(dropped, (weight * (self.hira_B @ self.hira_A)).to(x.dtype))

    def weights(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight + weight * (self.hira_B @ self.hira_A), bias

    def merged(self, base: nn.Module) -> dict[str, Tensor]:
        found = super().merged(base)
        found.pop("bias", None)
        return found
