"""The transformer layer of forecasters: attention with biases, GELU, norms after the residuals."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.errors import ShapeError
from instar.forecasting.dropout import Dropout, dropped


class Attention(nn.Module):
    r"""softmax(Q Kᵀ / √K) V by heads, on queries x [B, T, D] and memory [B, S, D]; linear maps with biases.

    Args:
        width: D. heads: H. dropout: on the attention matrix. causal: no query reads a later position (T = S).

    4·T·D² + 2·T·S·D multiply-adds. Raises ShapeError for a width that the heads do not divide.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0, *, causal: bool = False) -> None:
        super().__init__()
        if width < 1 or heads < 1 or width % heads:
            raise ShapeError(f"The heads divide the width; received width={width}, heads={heads}.")
        self.heads, self.dropout, self.causal = heads, dropout, causal
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, memory: Tensor | None = None, *, present: Tensor | None = None) -> Tensor:
        """present: bool [B, S], the memory that may be read; a row without any reads everything."""
        rate = self.dropout if self.training else 0.0
        if rate and x.device.type == "cpu":  # no kernel there drops weights: torch writes it out too, in more passes
            return self.weighed(x, memory, present=present)[0]
        q, k, v = self._heads(x, x if memory is None else memory)
        mask = None if present is None else _readable(present)
        return self._joined(F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=rate, is_causal=self.causal))

    def weighed(self, x: Tensor, memory: Tensor | None = None, *, present: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The same, written out, with the weights [B, H, T, S] before dropout: what a reader of the attention asks for."""
        q, k, v = self._heads(x, x if memory is None else memory)
        scores = (q / q.shape[-1] ** 0.5) @ k.mT
        if present is not None:
            scores = scores.masked_fill(~_readable(present), -torch.inf)
        if self.causal:
            scores = scores.masked_fill(torch.ones(scores.shape[-2:], device=x.device).triu(1).bool(), -torch.inf)
        weights = _softmax(scores)
        return self._joined(dropped(weights, self.dropout, self.training) @ v), weights

    def _heads(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        parts = self.query(x), self.key(memory), self.value(memory)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        return q, k, v

    def _joined(self, y: Tensor) -> Tensor:
        return self.out(y.transpose(1, 2).flatten(2))


_FEW = 16
"""Rows shorter than a vector of the processor take its softmax ten times as long; along the first axis they do not."""


def _softmax(scores: Tensor) -> Tensor:
    if scores.shape[-1] < _FEW and scores.device.type == "cpu":
        return scores.movedim(-1, 0).contiguous().softmax(0).movedim(0, -1).contiguous()
    return scores.softmax(-1)


def _readable(present: Tensor) -> Tensor:
    """[B, 1, 1, S]."""
    return (present | ~present.any(1, keepdim=True))[:, None, None]


class EncoderLayer(nn.Module):
    """z ← LN(z + drop(attention(z))); z ← LN(z + FFN(z)), FFN = linear, GELU, dropout, linear, dropout.

    Args:
        attention: what mixes tokens; None leaves them apart. width, hidden, dropout: of the FFN.
    """

    def __init__(self, attention: nn.Module | None, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.attention = attention
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.rise, self.fall = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.drop = Dropout(dropout)

    def forward(self, z: Tensor, mixed: Tensor | None) -> Tensor:
        """mixed: what attention makes of z; the caller asks it, since what it reads beside z differs."""
        z = self.first(z if mixed is None else z + self.drop(mixed))
        return self.second(z + self.drop(self.fall(self.drop(F.gelu(self.rise(z))))))
