"""Titans: a deep memory that learns every token by a gradient step with momentum and forgetting.

Behrouz, Zhong, Mirrokni, "Titans: Learning to Memorize at Test Time", 2024 (arXiv 2501.00663).
"""

from __future__ import annotations

from instar.kernels.memory_network import MemoryNetwork
from instar.kernels.omega_rule import OmegaRule
from instar.mixers.neural_memory import NeuralMemory


class Titans(NeuralMemory):
    r"""S_t = θ_t S_{t-1} + η_t ∇ ½ |M(k_t; A) - v_t|²,  W_t = α_t W_{t-1} - S_t,  o_t = M(q_t; W_t),
    y_t = W_o [norm(o_t) ∘ swish(W_g x_t)].

    The long-term memory of the paper (LMM) as a layer. M(z) = z + W₁ gelu(W₂ z) for each head; A are its weights before the chunk
    that the token belongs to, so that a chunk's gradients are taken together. Keys, values, queries and gates are projections
    of x: see `NeuralMemory`.

    Args:
        width: D. heads: H. matrices: of the memory: 1 a linear map, 2 an MLP, 3 an MLP with a multiplied branch.
        expansion: hidden units of the memory, as a multiple of D / H. norm: M(z) = z + g ∘ norm(·), g learnt with the memory.
        momentum: without it W_t = α_t W_{t-1} - η_t ∇.
        chunk: C. It is part of the model: what is trained with one chunk is another function with another. 1 is exact.
        lagged: read the weights after the last whole chunk, rather than after the token.
        largest_step: bound of η. Steps of a chunk add up where keys are equal: with 1 and chunks of 16, outer gradients of text
            exploded within 50 steps of training.
        largest_gradient: n becomes n / √(1 + (n / largest_gradient)²) for the norm n of a token's gradient of each matrix; 0
            leaves it, and then equal keys in one chunk can make the memory diverge.
        conv_size: tokens of the convolutions. output_gate: whether swish(W_g x_t) is there.

    Shapes: x [B, T, D] -> [B, T, D]; state `NeuralMemoryState`. Raises ShapeError.
    O(T (D² + |W| + C D)) time with |W| = matrices · expansion · D² / H, O(3 |W|) state.
    Differs from the paper: a bound of gradients, a step bounded by `largest_step`; persistent tokens and the combinations with
    attention (MAC, MAG, MAL) are a host's.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int = 4,
        matrices: int = 2,
        expansion: int = 4,
        norm: bool = False,
        momentum: bool = True,
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
                MemoryNetwork(matrices, norm=norm, largest=largest_gradient), chunk=chunk, momentum=momentum, lagged=lagged
            ),
            expansion=expansion,
            degree=1,
            features="exact",
            conv_size=conv_size,
            output_gate=output_gate,
            largest_step=largest_step,
        )
