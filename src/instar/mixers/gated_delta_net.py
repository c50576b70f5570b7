"""Gated DeltaNet: the delta rule replaces single memories, a gate clears them all at once.

Yang, Kautz, Hatamizadeh, "Gated Delta Networks: Improving Mamba2 with Delta Rule", 2024 (arXiv 2412.06464).
"""

from __future__ import annotations

from torch import Tensor, nn

from instar.mixers.delta_net import DeltaNet
from instar.mixers.time_step import initial_bias, initial_rate, step_and_gate

SLOWEST = 0.01
"""Least initial rate A: the paper draws from [0, 16], where log A has no bound."""


class GatedDeltaNet(DeltaNet):
    r"""S_t = α_t (I - β_t k_t k_tᵀ) S_{t-1} + β_t k_t v_tᵀ,  o_t = S_tᵀ q_t / √K,  y_t = W_o [norm(o_t) ∘ swish(W_g x_t)].

    The gate is α_t = exp(-A · softplus(W_a x_t + b)), a number for each head, as of Mamba-2; everything else as of `DeltaNet`.

    Args:
        width: D. heads: H. expand_k, expand_v: all heads' keys and values have widths expand_k · D and expand_v · D.
        decay: whether there is a gate; without it α_t = 1, the delta rule in this block.
        conv_size, output_gate, negative_eigenvalues, chunk: as of `DeltaNet`.

    Shapes: x [B, T, D] -> [B, T, D]; state `DeltaState`. Raises ShapeError.
    O(T (D² + chunk · D + expand_k expand_v D² / H)) time, O(expand_k expand_v D² / H) state.
    State dicts of the authors' layer load. Differs from the paper: initial rates are at least 0.01; grouped value heads of the
    authors' library are left out.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int = 4,
        expand_k: float = 0.75,
        expand_v: float = 1.5,
        decay: bool = True,
        conv_size: int = 4,
        output_gate: bool = True,
        negative_eigenvalues: bool = False,
        chunk: int = 64,
    ) -> None:
        super().__init__(
            width,
            heads=heads,
            expand_k=expand_k,
            expand_v=expand_v,
            conv_size=conv_size,
            output_gate=output_gate,
            negative_eigenvalues=negative_eigenvalues,
            chunk=chunk,
        )
        self.decay = decay
        if decay:
            self.a_proj = nn.Linear(width, heads, bias=False)
            nn.init.normal_(self.a_proj.weight, std=0.02)
            self.A_log, self.dt_bias = nn.Parameter(initial_rate(heads, SLOWEST)), nn.Parameter(initial_bias(heads))

    def _log_gate(self, x: Tensor) -> Tensor | None:
        """log α [B, T, H]; None without decay."""
        return step_and_gate(self.a_proj(x), self.dt_bias, self.A_log)[1] if self.decay else None
