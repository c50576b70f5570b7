"""Attention with a learned sink for each head: a score that takes attention and gives nothing.

OpenAI 2025, "gpt-oss-120b & gpt-oss-20b Model Card" (arXiv 2508.10925); Xiao et al. 2023 (2309.17453) on what sinks are for.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from instar.errors import ShapeError
from instar.kernels.eager_attention import eager_attention
from instar.kernels.normalisers import sink_softmax
from instar.kernels.sink_attention import sink_attention
from instar.mixers.softmax import Softmax


class Sinks(Softmax):
    r"""Softmax attention with the weights exp(x_i) / (exp(s_h) + Σ_j exp(x_j)), s_h learned for each head.

    Args:
        width, heads, kv_heads, rope, rope_base, bias: as of `Softmax`.
        start: s_h before training. 0 starts as `Softmax1`; very negative, as softmax.

    Shapes, state and cost as of `Softmax`; SDPA with one more column and one more coordinate, written out for one token. Raises
    ShapeError. Differs from gpt-oss: no sliding windows and no YaRN; sinks start equal, not from a normal distribution.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int = 4,
        start: float = 0.0,
        kv_heads: int = 0,
        rope: bool = True,
        rope_base: float = 10000.0,
        bias: bool = False,
    ) -> None:
        super().__init__(width, heads=heads, kv_heads=kv_heads, rope=rope, rope_base=rope_base, bias=bias)
        if not abs(start) < 1e4:
            raise ShapeError(f"start must be a finite logit, between −10⁴ and 10⁴; received {start}.")
        self.sinks = nn.Parameter(torch.full((heads,), float(start)))

    def weigh(self, scores: Tensor) -> Tensor:
        return sink_softmax(scores, self.sinks.to(scores.dtype).view(-1, 1, 1))

    def read(self, q: Tensor, keys: Tensor, values: Tensor, attend: Tensor | None, causal: bool) -> Tensor:
        if q.shape[2] == 1 and not causal:
            return eager_attention(q, keys, values, self.weigh, attend=attend)
        return sink_attention(q, keys, values, self.sinks, attend=attend, causal=causal)
