"""What stands where a part of a transformer was: modules that compute nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Absent(nn.Module):
    """A linear layer without weights: y = b, or 0. [..., anything] -> [..., outputs].

    With no outputs it stands for the layers that fed it.
    """

    def __init__(self, outputs: int, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        self.out_features = outputs
        self.bias: nn.Parameter | None
        self.register_parameter("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        found = x.new_zeros(*x.shape[:-1], self.out_features)
        return found if self.bias is None else found + self.bias

    def extra_repr(self) -> str:
        return f"out_features={self.out_features}, bias={self.bias is not None}"


class NoAttention(Absent):
    """Attention without heads, called as attention is in `transformers`: its output bias or 0, and no probabilities.

    A cache still has to know how many tokens went by: it gets one number for each.
    """

    def __init__(self, outputs: int, bias: nn.Parameter | None = None, layer_idx: int = 0) -> None:
        super().__init__(outputs, bias)
        self.layer_idx = layer_idx

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:  # type: ignore[override]
        for value in (*args, *kwargs.values()):
            if hasattr(value, "get_seq_length") and hasattr(value, "update"):
                nothing = torch.zeros(
                    hidden_states.shape[0], 1, hidden_states.shape[1], 1, dtype=hidden_states.dtype, device=hidden_states.device
                )
                value.update(nothing, nothing, self.layer_idx)
        return super().forward(hidden_states), None
