"""How uncertain the next value of a series is: values as tokens, a small causal language model over them, its entropy."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.errors import ShapeError
from instar.forecasting.dropout import Dropout

SPECIAL = 4
"""Tokens that stand for no value (pad, begin, end, end of example); they are kept for the authors' numbering."""


class Quantiser(nn.Module):
    r"""Token of x_t: 5 + the bin of x_t / s among V − 5 equally spaced centres from `low` to `high`, s = mean |x| of the window.

    Values beyond the ends go to the end bins. Tokens of a·x are those of x for a > 0. Source: Chronos (arXiv 2403.07815), as in
    EntroPE's code. Raises ShapeError for ends that are no interval.
    """

    low: Tensor
    high: Tensor

    def __init__(self, vocabulary: int = 256) -> None:
        super().__init__()
        if vocabulary < SPECIAL + 3:
            raise ShapeError(f"A vocabulary of values has at least {SPECIAL + 3} tokens; received {vocabulary}.")
        self.vocabulary = vocabulary
        self.register_buffer("low", torch.tensor(-2.0))
        self.register_buffer("high", torch.tensor(2.0))

    def set_range(self, low: float, high: float) -> None:
        """The centres' ends. Raises ShapeError."""
        if not low < high:
            raise ShapeError(f"Values are quantised between a low and a high end; received {low} and {high}.")
        self.low.fill_(low)
        self.high.fill_(high)

    def scale(self, x: Tensor) -> Tensor:
        """s of each window [..., T]: [..., 1]; 1 where all values are 0."""
        mean = x.abs().mean(-1, keepdim=True)
        return torch.where(mean > 0, mean, 1.0)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """x [..., T] -> int64 [..., T]."""
        centres = self.centres()
        between = (centres[1:] + centres[:-1]) / 2
        bins = torch.bucketize((x / (self.scale(x) if scale is None else scale)).contiguous(), between, right=True)
        return bins + SPECIAL + 1

    def values(self, tokens: Tensor, scale: Tensor) -> Tensor:
        """The centres of tokens' bins, in the units of the window."""
        return self.centres()[tokens - SPECIAL - 1] * scale

    def centres(self) -> Tensor:
        """[V − 5]."""
        share = torch.linspace(0, 1, self.vocabulary - SPECIAL - 1, device=self.low.device, dtype=self.low.dtype)
        return self.low + (self.high - self.low) * share


_TOGETHER = 32
"""Windows whose entropies are found at once: the logits of so few stay in a processor's cache, which halves the time."""


class EntropyModel(nn.Module):
    r"""A GPT-2 of width 32: H_t = −Σ_v p(v | x_1 … x_t) log p(v | x_1 … x_t), in nats, of the value that follows t.

    Learnt positions, no biases, norms before attention and feed, tied embeddings, dropout; weights start from N(0, 0.02²), those
    that lead into the residual stream divided by √(2 · layers). About 36,000 parameters.

    Shapes: tokens int64 [B, T] -> logits [B, T, V]; T is at most `context`. Source: EntroPE (arXiv 2509.26157). Raises
    ShapeError.
    """

    def __init__(
        self, vocabulary: int = 256, context: int = 96, width: int = 32, depth: int = 2, heads: int = 4, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.context = context
        self.embedding, self.position = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.layers = nn.ModuleList(_Layer(width, heads, dropout) for _ in range(depth))
        self.norm, self.drop = nn.LayerNorm(width, bias=False), Dropout(dropout)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02 / (math.sqrt(2 * depth) if name.endswith("back.weight") else 1.0))

    def forward(self, tokens: Tensor) -> Tensor:
        T = tokens.shape[1]
        if self.context < T:
            raise ShapeError(f"This entropy model was made for windows of at most {self.context} values; received {T}.")
        z = self.drop(self.embedding(tokens) + self.position.weight[:T])
        for layer in self.layers:
            z = layer(z)
        return self.norm(z) @ self.embedding.weight.mT

    @torch.no_grad()
    def entropies(self, tokens: Tensor) -> Tensor:
        """H [B, T], between 0 and log V, some windows at a time. Without dropout only in eval mode."""
        found = tokens.new_empty(tokens.shape, dtype=self.embedding.weight.dtype)
        for part, into in zip(tokens.split(_TOGETHER), found.split(_TOGETHER), strict=True):
            logs = self(part).log_softmax(-1)
            into.copy_(-(logs.exp() * logs).sum(-1))
        return found


class _Layer(nn.Module):
    """z ← z + attention(LN(z)); z ← z + W GELU(W' LN(z))."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.first, self.second = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.enter, self.attention_back = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.rise, self.feed_back = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)
        self.drop = Dropout(dropout)

    def forward(self, z: Tensor) -> Tensor:
        q, k, v = self.enter(self.first(z)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        rate = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=rate, is_causal=True).transpose(1, 2).flatten(2)
        z = z + self.drop(self.attention_back(mixed))
        return z + self.drop(self.feed_back(F.gelu(self.rise(self.second(z)))))
