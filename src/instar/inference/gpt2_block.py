"""The ordinary block of GPT-2, of which loops and their baselines are built."""

from __future__ import annotations

import math
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from instar.errors import ShapeError

Init = Literal["fan_in", "normal"]


class Gpt2Block(nn.Module):
    """x ← x + Attention(LN(x)); x ← x + W₂ GELU(W₁ LN(x)), hidden 4 D, biases, no dropout; [B, T, D] -> [B, T, D]."""

    def __init__(self, width: int, heads: int, *, causal: bool = True) -> None:
        super().__init__()
        if width % heads:
            raise ShapeError(f"Heads must divide the width; received width {width} and {heads} heads.")
        self.heads, self.causal = heads, causal
        self.attention_norm, self.feed_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.attention_norm(x)).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.feed_norm(x))))


def stack(width: int, depth: int, heads: int, *, causal: bool = True) -> nn.Sequential:
    """So many blocks with weights of their own."""
    return nn.Sequential(*(Gpt2Block(width, heads, causal=causal) for _ in range(depth)))


def initialise(model: nn.Module, init: Init, layers: int) -> None:
    """normal: N(0, 0.02²), outputs to the residual stream 0.02 / √(2 layers), biases 0. fan_in: uniform, as torch does."""
    if init not in ("fan_in", "normal"):
        raise ShapeError(f"init must be fan_in or normal; received {init!r}.")
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and init == "normal":
            residual = name.rpartition(".")[2] in ("out", "down")
            nn.init.normal_(module.weight, std=0.02 / math.sqrt(2 * layers) if residual else 0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
