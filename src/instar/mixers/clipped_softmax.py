"""Clipped softmax: attention weights that reach exactly 0 and 1, so that heads need no extreme scores to do nothing.

Bondarenko, Nagel, Blankevoort 2023, "Quantizable Transformers" (arXiv 2306.12929).
"""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from instar.errors import ShapeError
from instar.kernels.eager_attention import eager_attention
from instar.kernels.normalisers import clipped_softmax
from instar.mixers.softmax import Softmax


class ClippedSoftmax(Softmax):
    r"""Softmax attention with the weights clip((ζ − γ) softmax(x) + γ, 0, 1), γ = −α / length, without renormalisation.

    Args:
        width, heads, kv_heads, rope, rope_base, bias: as of `Softmax`.
        alpha: α ≥ 0; weights up to α / (length + α) become 0 (for ζ = 1). The paper's range for BERT is 2 to 4, 12 for OPT.
        length: tokens in a training sequence. It is part of the model: γ is the same at every length, so that one token at a
            time gives what the whole sequence gives.
        zeta: ζ ≥ 1; above 1 large weights become exactly 1. By itself it does nothing, says the paper.

    Shapes, state and cost as of `Softmax`, but the weights are written out: O(T²) memory, no fused kernel. Raises ShapeError.
    Beyond `length` tokens weights grow smaller, and with many more all of them are clipped to 0: a RuntimeWarning tells.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int = 4,
        alpha: float = 4.0,
        length: int = 256,
        zeta: float = 1.0,
        kv_heads: int = 0,
        rope: bool = True,
        rope_base: float = 10000.0,
        bias: bool = False,
    ) -> None:
        super().__init__(width, heads=heads, kv_heads=kv_heads, rope=rope, rope_base=rope_base, bias=bias)
        if not 0 <= alpha < math.inf or length < 1 or not 1 <= zeta < math.inf:
            raise ShapeError(f"Finite alpha ≥ 0 and zeta ≥ 1, and length ≥ 1 expected; received {alpha}, {length} and {zeta}.")
        self.alpha, self.length, self.zeta = alpha, length, zeta

    @property
    def gamma(self) -> float:
        """γ, which stretches the weights below 0 before they are clipped."""
        return -self.alpha / self.length

    def weigh(self, scores: Tensor) -> Tensor:
        return clipped_softmax(scores, self.gamma, self.zeta)

    def read(self, q: Tensor, keys: Tensor, values: Tensor, attend: Tensor | None, causal: bool) -> Tensor:
        columns = keys.shape[2]
        if self.alpha and columns > self.length and not torch.compiler.is_compiling():
            warnings.warn(
                f"Clipped softmax was set for {self.length} tokens and attends over {columns}: weights below "
                f"{self.alpha / (self.length * self.zeta + self.alpha):.3g} are 0, and with many more keys all of them are.",
                RuntimeWarning,
                stacklevel=2,
            )
        return eager_attention(q, keys, values, self.weigh, attend=attend, causal=causal)
