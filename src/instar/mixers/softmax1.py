"""Softmax-plus-one: attention that may give its weight to nothing.

Miller 2023, "Attention Is Off By One" (a blog post; no trained model accompanies it).
"""

from __future__ import annotations

from torch import Tensor

from instar.kernels.eager_attention import eager_attention
from instar.kernels.normalisers import softmax1
from instar.kernels.sink_attention import sink_attention
from instar.mixers.softmax import Softmax


class Softmax1(Softmax):
    r"""Softmax attention with the weights exp(x_i) / (1 + Σ_j exp(x_j)): as if one more key scored 0 and had the value 0.

    Args, shapes, state and cost as of `Softmax`; SDPA with one more column, written out for one token, where that column would
    copy the cache. Raises ShapeError.
    """

    def weigh(self, scores: Tensor) -> Tensor:
        return softmax1(scores)

    def read(self, q: Tensor, keys: Tensor, values: Tensor, attend: Tensor | None, causal: bool) -> Tensor:
        if q.shape[2] == 1 and not causal:
            return eager_attention(q, keys, values, self.weigh, attend=attend)
        return sink_attention(q, keys, values, attend=attend, causal=causal)
