"""One block of two streams with shared weights: what was observed, and candidates for what comes next."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.errors import ShapeError
from instar.inference.norms import Norm, make_norm
from instar.mixers.positions import rotate

Conditioning = Literal["none", "time_embed", "adaln", "adaln_zero"]
Activation = Literal["silu", "gelu", "relu", "tanh"]
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "gelu": F.gelu, "relu": F.relu, "tanh": torch.tanh}
ROPE_BASE = 1e4
Past = tuple[Tensor, Tensor]
"""Keys and values [B, H, C, K] of observed columns, rotated."""


class GatedFeedForward(nn.Module):
    """y = W_down (φ(W_gate x) ⊙ W_up x) on [B, T, D]."""

    def __init__(self, width: int, hidden: int, activation: Activation) -> None:
        super().__init__()
        if activation not in _ACTIVATIONS:
            raise ShapeError(f"activation must be one of {', '.join(_ACTIVATIONS)}; received {activation!r}.")
        self.activation = activation
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(_ACTIVATIONS[self.activation](self.gate(x)) * self.up(x))


class TwoStreamBlock(nn.Module):
    r"""x ← x + γ₁ Attention(Norm(x)(1 + s₁) + b₁);  x ← x + γ₂ FeedForward(Norm(x)(1 + s₂) + b₂), the same for both streams.

    The observed stream attends causally to itself and knows no candidate. Candidate i, at the position i + 1 of the token that it
    predicts, attends to o_0 … o_i and to itself:

        w_i = softmax([q_i·k_0, …, q_i·k_i, q_i·k̂_i] / √K),   out_i = Σ_j w_ij v_j + w_i,self v̂_i

    γ, s, b are 1, 0, 0 without adaLN, and otherwise linear in SiLU(condition).

    Shapes: x [B, T, D], candidates [B, N, D]. Complexity: O((T + N) D² + (T² + N T) D). Raises ShapeError.
    Source: Gladstone et al. 2025 (arXiv 2507.02092), AdaLN: Peebles and Xie 2023 (2212.09748).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        *,
        norm: Norm = "rms",
        activation: Activation = "silu",
        conditioning: str = "none",
    ) -> None:
        super().__init__()
        if width % heads or (width // heads) % 2:
            raise ShapeError(f"Rotary positions need heads of equal, even width; received width {width} and {heads} heads.")
        if conditioning not in get_args(Conditioning):
            raise ShapeError(f"conditioning must be one of {', '.join(get_args(Conditioning))}; received {conditioning!r}.")
        self.heads = heads
        self.attention_norm, self.feed_norm = make_norm(norm, width), make_norm(norm, width)
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.feed = GatedFeedForward(width, hidden, activation)
        self.modulation = nn.Linear(width, 6 * width) if conditioning.startswith("adaln") else None

    def observe(self, x: Tensor, positions: Tensor, past: Past | None, condition: Tensor | None) -> tuple[Tensor, Past]:
        """The observed stream [B, T, D] behind `past`, and keys and values of both together.

        Only first derivatives pass here: the inner gradient is with respect to candidates, of which nothing here depends. So the
        fused kernel, which has no second ones, may be used.
        """
        shift, scale, gate, shift2, scale2, gate2 = self._modulate(condition)
        h = self.attention_norm(x) * (1 + scale) + shift
        q, k, v = (self._split(layer(h)) for layer in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate((q, k), positions, ROPE_BASE)
        if past is None:
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
            T, C = q.shape[2], k.shape[2]
            seen = torch.ones(T, C, dtype=torch.bool, device=q.device).tril(C - T)
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        x = x + gate * self.o_proj(self._join(mixed))
        return x + gate2 * self.feed(self.feed_norm(x) * (1 + scale2) + shift2), (k, v)

    def consider(self, y: Tensor, positions: Tensor, past: Past, seen: Tensor | None, condition: Tensor | None) -> Tensor:
        """Candidates [B, N, D] over observed columns; `seen` [N, C] is True where a candidate sees one (None: all see all).

        Plain arithmetic, which has derivatives of any order.
        """
        shift, scale, gate, shift2, scale2, gate2 = self._modulate(condition)
        h = self.attention_norm(y) * (1 + scale) + shift
        q, k, v = (self._split(layer(h)) for layer in (self.q_proj, self.k_proj, self.v_proj))
        own = (q * k).sum(-1, keepdim=True)  # the same rotation of both leaves their product as it is
        (q,) = rotate((q,), positions, ROPE_BASE)
        scores = q @ past[0].mT
        if seen is not None:
            scores = scores.masked_fill(~seen, -torch.inf)
        weights = (torch.cat([scores, own], -1) / math.sqrt(q.shape[-1])).softmax(-1)
        mixed = weights[..., :-1] @ past[1] + weights[..., -1:] * v
        y = y + gate * self.o_proj(self._join(mixed))
        return y + gate2 * self.feed(self.feed_norm(y) * (1 + scale2) + shift2)

    def _modulate(self, condition: Tensor | None) -> tuple[Tensor | float, ...]:
        if self.modulation is None or condition is None:
            return 0.0, 0.0, 1.0, 0.0, 0.0, 1.0
        return self.modulation(F.silu(condition)).chunk(6, -1)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _join(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(2)
