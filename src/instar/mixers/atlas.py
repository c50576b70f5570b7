"""ATLAS: a deep memory of polynomial features that learns a window of tokens at every step, by Muon.

Behrouz et al., "ATLAS: Learning to Optimally Memorize the Context at Test Time", 2025 (arXiv 2505.23735), section 5.
"""

from __future__ import annotations

from instar.kernels.memory_network import MemoryNetwork
from instar.kernels.omega_rule import OmegaRule
from instar.kernels.polynomial_features import Kind
from instar.mixers.neural_memory import NeuralMemory


class Atlas(NeuralMemory):
    r"""S_t = θ_t S_{t-1} + Σ_{j<c} γ_{t,j} ∇ ½ |M(φ(k_{t-j}); A) - v_{t-j}|²,  W_t = α_t W_{t-1} - η_t NS(S_t),
    o_t = M(φ(q_t); W_t),  y_t = W_o [norm(o_t) ∘ swish(W_g x_t)].

    M(z) = z + W₁ gelu(W₂ φ(z)) for each head; A are its weights before the chunk that the token belongs to. NS is the
    Newton–Schulz iteration of `newton_schulz`, on each matrix. Keys, values, queries and gates: see `NeuralMemory`.

    Args:
        width: D. heads: H. window: c. degree, features: of φ; the exact kind has C(D / H + degree, degree) features: take heads
            with D / H of 16 to 32.
        matrices: of the memory: 1 a linear map, 2 an MLP, 3 an MLP with a multiplied branch (ATLAS++).
        newton_schulz: iterations; 0 is the momentum rule, S_t = θ_t S_{t-1} + η_t Σ …, W_t = α_t W_{t-1} - S_t.
        lagged: read the weights after the last whole chunk, and step by Muon once a chunk, by the sum of its tokens' steps;
            without it, as in the paper, NS is taken at every token, which costs `chunk` times as many iterations.
        largest_step: bound of η; NS has no scale of its own, so it is the largest change of a singular value at a token.
        expansion, norm, chunk, largest_gradient, conv_size, output_gate: as of `Titans`.

    Shapes: x [B, T, D] -> [B, T, D]; state `NeuralMemoryState`. Raises ShapeError.
    With F features a head and |W| = expansion · D (F + D / H): O(T (D² + newton_schulz · |W| · min(expansion · D / H, F))) time,
    divided by the chunk in the second term if lagged; O(3 |W| + c D) state.
    Differs from the paper: +gradient into S and -η NS(S) out of it, of the three signs and two places of η that it prints; γ is
    divided by c, φ has length 1, gradients are bounded.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int = 4,
        window: int = 8,
        degree: int = 2,
        features: Kind = "exact",
        matrices: int = 2,
        newton_schulz: int = 5,
        expansion: int = 4,
        norm: bool = False,
        chunk: int = 16,
        lagged: bool = True,
        largest_step: float = 0.1,
        largest_gradient: float = 2.0,
        conv_size: int = 4,
        output_gate: bool = True,
    ) -> None:
        super().__init__(
            width,
            heads,
            rule=OmegaRule(
                MemoryNetwork(matrices, norm=norm, largest=largest_gradient),
                window=window,
                chunk=chunk,
                momentum=True,
                newton_schulz=newton_schulz,
                lagged=lagged,
            ),
            expansion=expansion,
            degree=degree,
            features=features,
            conv_size=conv_size,
            output_gate=output_gate,
            largest_step=largest_step,
        )
