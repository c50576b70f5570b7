"""Linformer: attention over k learned mixtures of the keys and values.

Wang, Li, Khabsa, Fang, Ma 2020, "Linformer: Self-Attention with Linear Complexity" (arXiv 2006.04768).
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.errors import ShapeError
from instar.mixers.projecting import Projecting
from instar.mixers.whole_sequence import WholeSequence

Sharing = Literal["none", "headwise", "key_value"]


class Linformer(Projecting, WholeSequence):
    r"""O = softmax(Q (E K)ᵀ / √K) (F V), with E and F [rank, max_len] learned: linear in the length, for a bounded length.

    Args:
        width: D, a multiple of heads. heads: H, each of width K = D / H.
        rank: k, mixtures that are attended to. max_len: most tokens of a sequence; a shorter one uses the first columns.
        sharing: "none", an E and an F for each head; "headwise", one of each; "key_value", one matrix for both.
        bias: biases of the four projections.

    Shapes: x [B, T, D] -> [B, T, D]; no state. Raises ShapeError, also for longer sequences. O(T (D² + k D)) time. E and F start
    from N(0, 1 / k). Padding is kept out before E and F mix it in. Differs from the paper: no sharing between layers (assign one
    layer's parameters to the others for that).
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int = 4,
        rank: int = 64,
        max_len: int = 512,
        sharing: Sharing = "headwise",
        bias: bool = False,
    ) -> None:
        super().__init__(width, heads, bias)
        if rank < 1 or max_len < 1:
            raise ShapeError(f"rank and max_len must be positive; received {rank} and {max_len}.")
        if sharing not in get_args(Sharing):
            raise ShapeError(f"sharing must be one of {', '.join(map(repr, get_args(Sharing)))}; received {sharing!r}.")
        self.rank, self.max_len, self.sharing = rank, max_len, sharing
        shape = (heads if sharing == "none" else 1, rank, max_len)
        self.E = nn.Parameter(torch.randn(shape) * rank**-0.5)
        if sharing != "key_value":
            self.F = nn.Parameter(torch.randn(shape) * rank**-0.5)

    def mix(self, x: Tensor, real: Tensor) -> Tensor:
        q, k, v = self.project(x)
        E, F_ = (matrix[..., : self._length(x.shape[1])] for matrix in self._matrices())
        seen = real[:, None, :, None]
        return self.leave(F.scaled_dot_product_attention(q, E @ (k * seen), F_ @ (v * seen)))

    def alone(self, x: Tensor) -> Tensor:
        L = self._length(x.shape[0])
        q, k, v = (part[0] for part in self.project(x.unsqueeze(0)))
        E, F_ = self._matrices()
        A = torch.softmax(q @ (E[..., :L] @ k).mT * self.head_width**-0.5, dim=-1)
        return self.leave((A @ (F_[..., :L] @ v)).unsqueeze(0))[0]

    def _matrices(self) -> tuple[Tensor, Tensor]:
        return (self.E, self.E) if self.sharing == "key_value" else (self.E, self.F)

    def _length(self, length: int) -> int:
        if length > self.max_len:
            raise ShapeError(f"This Linformer was made for {self.max_len} tokens; received {length}. Cut them, or set max_len.")
        return length
