"""Hopfield association of a whole sequence with itself: attention to both sides that may update its queries before it reads.

Ramsauer et al. 2020, "Hopfield Networks is All You Need" (arXiv 2008.02217).
"""

from __future__ import annotations

import torch
from torch import Tensor

from instar.kernels.hopfield import associate, settle_reference, weights
from instar.mixers.association import Association, PatternNorms, initialise
from instar.mixers.projecting import Projecting
from instar.mixers.whole_sequence import WholeSequence


class BidirectionalHopfield(Projecting, WholeSequence):
    r"""O = softmax(β Ξ Kᵀ) V, where Ξ starts as Q and is updated `steps` times by Ξ ← softmax(β Ξ Kᵀ) K.

    Args:
        width: D, a multiple of heads. heads: H, each of width K = D / H.
        steps: updates before the association; −1 until each state settles (then it does not compile).
        eps: a state that an update moves by no more than this has settled, and is left alone.
        beta: β; 0 means 1/√K. learn_beta: one for each head, learned as log β.
        normalize: layer norms of state, stored and projected patterns. bias: biases of the four projections.

    Shapes: x [B, T, D] -> [B, T, D]; no state. Raises ShapeError, DivergedError. O((steps + 1) T² D + T D²) time.
    Differs from the paper as `CausalHopfield` does, which has the energies.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int = 4,
        steps: int = 0,
        eps: float = 1e-4,
        beta: float = 0.0,
        learn_beta: bool = False,
        normalize: bool = True,
        bias: bool = True,
    ) -> None:
        super().__init__(width, heads, bias)
        self.association = Association(heads, float(beta) or self.head_width**-0.5, steps, float(eps), learn_beta)
        self.norms = PatternNorms(width, normalize)
        initialise(self)

    def mix(self, x: Tensor, real: Tensor) -> Tensor:
        q, k, v = self.project(x)
        own, whole = self.association, not torch.compiler.is_compiling() and bool(real.all())
        attend = None if whole else real[:, None, None]
        return self.leave(associate(q, k, v, beta=own.beta(q), steps=own.steps, eps=own.eps, attend=attend))

    def alone(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x.unsqueeze(0))
        own, beta = self.association, self.association.beta(q)
        state, _ = settle_reference(q, k, beta=beta, steps=own.steps, eps=own.eps)
        return self.leave(weights(state, k, beta=beta).to(v.dtype) @ v)[0]

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [B, H, T, K], each under a layer norm of its own."""
        state, stored, projection = self.norms(x)
        return self.split(self.q_proj(state)), self.split(self.k_proj(stored)), self.split(self.v_proj(projection))
