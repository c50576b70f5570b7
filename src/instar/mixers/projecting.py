"""The four projections that attention and its replacements have in common."""

from __future__ import annotations

from torch import Tensor, nn

from instar.errors import ShapeError
from instar.interfaces import Mixer


class Projecting(Mixer):
    """A mixer of H heads of width K = D / H between W_q, W_k, W_v and W_o, named as those of `Softmax`, whose weights load.

    width: D, a multiple of heads. bias: biases of the four projections. Raises ShapeError.
    """

    def __init__(self, width: int, heads: int, bias: bool) -> None:
        super().__init__()
        if heads < 1 or width < heads or width % heads:
            raise ShapeError(f"width must be a positive multiple of heads; received width={width}, heads={heads}.")
        self.width, self.heads, self.head_width = width, heads, width // heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(width, width, bias=bias) for _ in range(4))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [B, H, T, K] of x [B, T, D]."""
        return self.split(self.q_proj(x)), self.split(self.k_proj(x)), self.split(self.v_proj(x))

    def split(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, H, T, K]."""
        return x.unflatten(-1, (self.heads, self.head_width)).transpose(1, 2)

    def leave(self, y: Tensor) -> Tensor:
        """Head outputs [B, H, T, K] -> [B, T, D], through W_o."""
        return self.o_proj(y.transpose(1, 2).flatten(2))
