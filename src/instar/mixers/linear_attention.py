"""Linear attention: softmax replaced by a feature map, so that a sum over the past is all there is to keep.

Katharopoulos, Vyas, Pappas, Fleuret, "Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention", 2020
(arXiv 2006.16236).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.errors import ShapeError
from instar.interfaces import Mixer
from instar.kernels.gated_linear import gated_linear_attention

EPSILON = 1e-6
"""Added to the normaliser (the authors' code): the output before the first real token is 0 / ε = 0."""


class LinearState(NamedTuple):
    """Sums over the past, float32 (float64 in a float64 module)."""

    S: Tensor
    """Σ φ(k_i) v_iᵀ [B, H, K, K]."""
    z: Tensor
    """Σ φ(k_i) [B, H, K]."""


class LinearAttention(Mixer):
    r"""o_t = φ(q_t)ᵀ S_t / (φ(q_t)ᵀ z_t + ε) with S_t = Σ_{i≤t} φ(k_i) v_iᵀ, z_t = Σ_{i≤t} φ(k_i), φ = 1 + elu.

    Args:
        width: D, a multiple of heads. heads: H, each with keys and values of width K = D / H.
        bias: biases of the four projections. chunk: tokens of a chunk; it changes speed and rounding only.

    Shapes: x [B, T, D] -> [B, T, D]; state `LinearState`. Raises ShapeError. O(T (D² + chunk · D + D² / H)) time, O(D² / H)
    state. Differs from the paper: nothing known. Weights are N(0, 0.02²), as of the mixers it is compared with.
    """

    def __init__(self, width: int, *, heads: int = 4, bias: bool = False, chunk: int = 64) -> None:
        super().__init__()
        if heads < 1 or width < heads or width % heads:
            raise ShapeError(f"width must be a positive multiple of heads; received width={width}, heads={heads}.")
        if chunk < 1 or chunk & (chunk - 1):
            raise ShapeError(f"chunk must be a power of two; received {chunk}.")
        self.width, self.heads, self.key_width, self.chunk = width, heads, width // heads, chunk
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(width, width, bias=bias) for _ in range(4))
        for projection in (self.q_proj, self.k_proj, self.v_proj, self.o_proj):
            nn.init.normal_(projection.weight, std=0.02)
            if bias:
                nn.init.zeros_(projection.bias)

    def init_state(self, batch: int) -> LinearState:
        """Zeros."""
        weight = self.k_proj.weight
        shape, kind = (batch, self.heads, self.key_width), torch.promote_types(weight.dtype, torch.float32)
        return LinearState(weight.new_zeros(*shape, self.key_width, dtype=kind), weight.new_zeros(shape, dtype=kind))

    def forward(
        self, x: Tensor, state: LinearState | None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, LinearState]:
        """One linear recurrence for both sums: z is one more column of S, written by a value of 1. See `Mixer.forward`."""
        state = self.init_state(x.shape[0]) if state is None else state
        q, k, v = self._project(x, mask)
        joint = torch.cat([state.S, state.z.unsqueeze(-1)], dim=-1)
        values = torch.cat([v, torch.ones_like(v[..., :1])], dim=-1)
        o, joint = gated_linear_attention(q, k, values, None, scale=1.0, state=joint, mask=mask, reset=reset, chunk=self.chunk)
        y = o[..., :-1] / (o[..., -1:] + EPSILON)
        return self.o_proj(y.to(v.dtype).flatten(2)), LinearState(joint[..., :-1], joint[..., -1])

    def reference(
        self, x: Tensor, state: LinearState | None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, LinearState]:
        """The two sums, token by token."""
        B, T, _ = x.shape
        S, z = self.init_state(B) if state is None else state
        q, k, v = self._project(x, mask)
        outputs = [v[:, :0]]
        for t in range(T):
            if reset is not None:
                S = S.masked_fill(reset[:, t, None, None, None], 0.0)
                z = z.masked_fill(reset[:, t, None, None], 0.0)
            written = k[:, t] if mask is None else k[:, t] * mask[:, t, None, None]
            S = S + written.unsqueeze(-1) * v[:, t].unsqueeze(-2)
            z = z + written
            read = torch.einsum("bhk,bhkv->bhv", q[:, t], S)
            outputs.append((read / (torch.einsum("bhk,bhk->bh", q[:, t], z).unsqueeze(-1) + EPSILON)).unsqueeze(1))
        return self.o_proj(torch.cat(outputs, dim=1).flatten(2)), LinearState(S, z)

    def _project(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """φ(q), φ(k) and v, [B, T, H, K] each."""
        if mask is not None:
            x = x.masked_fill(~mask.unsqueeze(-1), 0.0)  # whatever stands in the padding, even NaN, ends here
        flat = 1 + F.elu(self.q_proj(x)), 1 + F.elu(self.k_proj(x)), self.v_proj(x)
        q, k, v = (part.unflatten(-1, (self.heads, self.key_width)) for part in flat)
        return q, k, v
