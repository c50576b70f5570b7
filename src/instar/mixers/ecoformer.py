"""EcoFormer, causal: linear attention between short binary codes, whose sums over the past are all that is kept.

Liu, Pan, He, Cai, Zhuang 2022, "EcoFormer: Energy-Saving Attention with Linear Complexity" (arXiv 2209.09004), which reads both
sides; the causal form is ours.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from instar.errors import ShapeError
from instar.kernels.gated_linear import gated_linear_attention
from instar.mixers.hashing import Hashing


class EcoformerState(NamedTuple):
    """Sums over the past, float32 (float64 in a float64 module); the last row is that of β: it sums the values themselves."""

    S: Tensor
    """Σ [b_i; 1] v_iᵀ [B, H, c + 1, K]."""
    z: Tensor
    """Σ [b_i; 1] [B, H, c + 1]."""


class Ecoformer(Hashing):
    r"""o_t = Σ_{i≤t} w_ti v_i / Σ_{i≤t} w_ti with w_ti = b_t·b_i + β, β = c + 1, and codes b ∈ {−1, 1}^c of `Hashing`.

    With features [b; β] of a query and [b; 1] of a key, o_t = [b_t; β]ᵀ S_t / [b_t; β]ᵀ z_t, S_t = Σ_{i≤t} [b_i; 1] v_iᵀ.

    Args:
        width: D, a multiple of heads. heads: H, each of width K = D / H.
        bits, support, pairs, iterations, step, spectral, refit_every, seed: as of `BidirectionalEcoformer`.
        bias: biases of the three projections. chunk: tokens of a chunk; it changes speed and rounding only.

    Shapes: x [B, T, D] -> [B, T, D]; state `EcoformerState`. Raises ShapeError. O(T (D² + m D + H m c + (chunk + c) D)) time,
    O(c D) state. Differs from the paper, which reads both sides and measures σ anew in each sequence: here σ is that of the last
    fit, since a later token must not change an earlier code.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int = 4,
        bits: int = 16,
        support: int = 25,
        pairs: int = 10,
        iterations: int = 100,
        step: float = 10.0,
        spectral: bool = False,
        refit_every: int = 0,
        seed: int | None = None,
        bias: bool = False,
        chunk: int = 64,
    ) -> None:
        super().__init__(width, heads, bits, support, pairs, iterations, step, spectral, refit_every, seed, bias)
        if chunk < 1 or chunk & (chunk - 1):
            raise ShapeError(f"chunk must be a power of two; received {chunk}.")
        self.chunk = chunk

    def spread(self, squared: Tensor, real: Tensor) -> Tensor:
        return self.sigma.to(squared).view(1, -1, 1, 1)

    def init_state(self, batch: int) -> EcoformerState:
        """Zeros."""
        weight = self.v_proj.weight
        kind = torch.promote_types(weight.dtype, torch.float32)
        S = weight.new_zeros(batch, self.heads, self.bits + 1, self.head_width, dtype=kind)
        return EcoformerState(S, S.new_zeros(S.shape[:3]))

    def forward(
        self, x: Tensor, state: EcoformerState | None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, EcoformerState]:
        """One linear recurrence for both sums: z is one more column of S, written by a value of 1. See `Mixer.forward`."""
        state = self.init_state(x.shape[0]) if state is None else state
        with torch.autocast(x.device.type, enabled=False):
            b, v = (part.transpose(1, 2) for part in self._coded(x, mask))
            ones = torch.ones_like(b[..., :1])
            joint = torch.cat([state.S, state.z.unsqueeze(-1)], dim=-1)
            o, joint = gated_linear_attention(
                torch.cat([b, self.beta * ones], -1),
                torch.cat([b, ones], -1),
                torch.cat([v, ones], -1),
                None,
                scale=1.0,
                state=joint,
                mask=mask,
                reset=reset,
                chunk=self.chunk,
            )
            norm = o[..., -1:]
            y = o[..., :-1] / norm.masked_fill(norm == 0, 1.0)
            return self.leave(y.transpose(1, 2), x), EcoformerState(joint[..., :-1], joint[..., -1])

    def reference(
        self, x: Tensor, state: EcoformerState | None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, EcoformerState]:
        """The two sums, token by token."""
        B, T, _ = x.shape
        S, z = self.init_state(B) if state is None else state
        outputs = [S.new_zeros(B, self.heads, 0, self.head_width)]
        for t in range(T):
            if reset is not None:
                S, z = S.masked_fill(reset[:, t, None, None, None], 0.0), z.masked_fill(reset[:, t, None, None], 0.0)
            b, v = (part[:, :, 0] for part in self._coded(x[:, t : t + 1], None if mask is None else mask[:, t : t + 1]))
            one = torch.ones_like(b[..., :1])
            key = torch.cat([b, one], -1)
            key = key if mask is None else key * mask[:, t, None, None]
            S, z = S + key.unsqueeze(-1) * v.unsqueeze(-2), z + key
            query = torch.cat([b, self.beta * one], -1)
            norm = (query * z).sum(-1, keepdim=True)
            read = (query.unsqueeze(-1) * S).sum(-2) / norm.masked_fill(norm == 0, 1.0)
            outputs.append(read.unsqueeze(2))
        return self.leave(torch.cat(outputs, dim=2), x), EcoformerState(S, z)

    def _coded(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Codes [B, H, T, c] and values [B, H, T, K]."""
        if mask is not None:
            x = x.masked_fill(~mask.unsqueeze(-1), 0.0)  # whatever stands in the padding, even NaN, ends here
        z, v = self.project(x)
        return self.codes(z, x.new_ones(x.shape[:2], dtype=torch.bool)), v
