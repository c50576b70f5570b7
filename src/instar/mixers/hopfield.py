"""Hopfield association of a sequence with its own past: causal attention that may update its queries before it reads.

Ramsauer et al. 2020, "Hopfield Networks is All You Need" (arXiv 2008.02217).
"""

from __future__ import annotations

from torch import Tensor

from instar.kernels.hopfield import associate, settle_reference
from instar.mixers.association import Association, PatternNorms, initialise
from instar.mixers.softmax import Softmax


class CausalHopfield(Softmax):
    r"""o_t = Σ_{i≤t} softmax_i(β ⟨ξ_t, k_i⟩) v_i, where ξ_t starts as the query q_t and is updated `steps` times:

        ξ_t ← Σ_{i≤t} softmax_i(β ⟨ξ_t, k_i⟩) k_i

    Each update lowers the energy E(ξ) = −β⁻¹ log Σ_i exp(β ⟨ξ, k_i⟩) + |ξ|²/2. Queries, keys and values are projections of
    x under three layer norms. With steps = 0, β = 1/√K and no norms it is softmax attention.

    Args:
        width: D, a multiple of heads. heads: H, each of width K = D / H.
        steps: updates before the association; −1 until each state settles (then it does not compile).
        eps: a state that an update moves by no more than this has settled, and is left alone.
        beta: β; 0 means 1/√K. Small, it averages; large, it finds one pattern. learn_beta: one for each head, learned as log β.
        normalize: the three layer norms. bias: biases of the four projections.

    Shapes: x [B, T, D] -> [B, T, D]; state `SoftmaxState`, a cache of keys and values. Raises ShapeError, DivergedError.
    O((steps + 1) T² D + T D²) time, O(T) state. Differs from the paper: each token stops by its own state's movement, where the
    authors' code stops a head when the largest movement of its weights over the batch is small.
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
        super().__init__(width, heads=heads, rope=False, bias=bias)
        self.association = Association(heads, float(beta) or self.head_width**-0.5, steps, float(eps), learn_beta)
        self.norms = PatternNorms(width, normalize)
        initialise(self)

    def read(self, q: Tensor, keys: Tensor, values: Tensor, attend: Tensor | None, causal: bool) -> Tensor:
        own = self.association
        return associate(q, keys, values, beta=own.beta(q), steps=own.steps, eps=own.eps, attend=attend, causal=causal)

    def settle(self, q: Tensor, keys: Tensor, attend: Tensor) -> Tensor:
        """The states after their updates, times β √K: scores are divided by √K."""
        own, beta = self.association, self.association.beta(q)
        state, _ = settle_reference(q, keys, beta=beta, steps=own.steps, eps=own.eps, attend=attend)
        return state * (beta.view(-1, 1, 1) if isinstance(beta, Tensor) else beta) * self.head_width**0.5

    def _project(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (
            projection(part).unflatten(-1, (self.heads, self.head_width)).transpose(1, 2)
            for projection, part in zip(projections, self.norms(x), strict=True)
        )
        return q, k, v
