"""OmegaNet: a deep memory of polynomial features that learns a window of tokens at every step, by the gradient alone.

Behrouz et al., "ATLAS: Learning to Optimally Memorize the Context at Test Time", 2025 (arXiv 2505.23735), sections 3 and 4.
"""

from __future__ import annotations

from instar.kernels.memory_network import MemoryNetwork
from instar.kernels.omega_rule import OmegaRule
from instar.kernels.polynomial_features import Kind
from instar.mixers.neural_memory import NeuralMemory


class OmegaNet(NeuralMemory):
    r"""W_t = α_t W_{t-1} - η_t Σ_{j<c} γ_{t,j} ∇ loss(φ(k_{t-j}), v_{t-j}; A),  o_t = M(φ(q_t); W_t),
    y_t = W_o [norm(o_t) ∘ swish(W_g x_t)].

    The loss is ½ |M - v|², or -⟨M, v⟩ (`hebbian`). M(z) = z + W₁ gelu(W₂ φ(z)) for each head; A are its weights before the chunk
    that the token belongs to. Keys, values, queries and gates are projections of x: see `NeuralMemory`.

    Members: c = 1 and φ(z) = z, the online rule; with a linear memory too, the gated delta rule. Hebbian, linear: gated linear
    attention, windowed (SWLA) for c > 1; deep: deep linear attention (DLA), and with polynomial features a DeepTransformer, whose
    features are those of the exponential cut off at `degree`. The Omega rule with such features is the paper's Dot.

    Args:
        width: D. heads: H. window: c. degree, features: of φ; the exact kind has C(D / H + degree, degree) features: take heads
            with D / H of 16 to 32.
        matrices: of the memory: 1 a linear map, 2 an MLP, 3 an MLP with a multiplied branch. hebbian: the loss.
        expansion, norm, chunk, lagged, largest_step, largest_gradient, conv_size, output_gate: as of `Titans`.

    Shapes: x [B, T, D] -> [B, T, D]; state `NeuralMemoryState`. Raises ShapeError.
    O(T (D² + (1 + c / chunk) |W| + (chunk + c) F H)) time with F features a head and |W| = expansion · D (F + D / H),
    O(2 |W| + c D) state. Differs from the paper: γ is divided by c, φ has length 1, gradients are bounded.
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
        hebbian: bool = False,
        expansion: int = 4,
        norm: bool = False,
        chunk: int = 16,
        lagged: bool = False,
        largest_step: float = 0.1,
        largest_gradient: float = 2.0,
        conv_size: int = 4,
        output_gate: bool = True,
    ) -> None:
        super().__init__(
            width,
            heads,
            rule=OmegaRule(
                MemoryNetwork(matrices, norm=norm, hebbian=hebbian, largest=largest_gradient),
                window=window,
                chunk=chunk,
                lagged=lagged,
            ),
            expansion=expansion,
            degree=degree,
            features=features,
            conv_size=conv_size,
            output_gate=output_gate,
            largest_step=largest_step,
        )
