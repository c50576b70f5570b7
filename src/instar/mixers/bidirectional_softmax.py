"""Softmax attention over the whole sequence: what the approximations that read both sides are measured against.

Vaswani et al. 2017, "Attention Is All You Need" (arXiv 1706.03762), the encoder's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from instar.mixers.projecting import Projecting
from instar.mixers.whole_sequence import WholeSequence


class BidirectionalSoftmax(Projecting, WholeSequence):
    r"""O = softmax(Q Kᵀ / √K) V over all tokens of the sequence, before and after.

    Args:
        width: D, a multiple of heads. heads: H, each of width K = D / H. bias: biases of the four projections.

    Shapes: x [B, T, D] -> [B, T, D]; no state. Raises ShapeError. O(T D² + T² D) time. Positions are the host's.
    """

    def __init__(self, width: int, *, heads: int = 4, bias: bool = False) -> None:
        super().__init__(width, heads, bias)

    def mix(self, x: Tensor, real: Tensor) -> Tensor:
        seen = real | ~real.any(1, keepdim=True)  # a row of padding alone reads itself, and stays finite
        return self.leave(F.scaled_dot_product_attention(*self.project(x), attn_mask=seen[:, None, None]))

    def alone(self, x: Tensor) -> Tensor:
        q, k, v = (part[0] for part in self.project(x.unsqueeze(0)))
        A = torch.softmax(q @ k.mT * self.head_width**-0.5, dim=-1)
        return self.leave((A @ v).unsqueeze(0))[0]
