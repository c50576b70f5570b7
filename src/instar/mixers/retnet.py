"""Retention: linear attention with rotated queries and keys, whose past fades by a fixed factor for each head.

Sun, Dong, Huang, Ma, Xia, Xue, Wang, Wei 2023, "Retentive Network: A Successor to Transformer for Large Language Models"
(arXiv 2307.08621).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.errors import ShapeError
from instar.interfaces import Mixer
from instar.kernels.gated_linear import gated_linear_attention
from instar.mixers.positions import count_positions, rotate


class RetNetState(NamedTuple):
    """What is kept between calls: its size does not grow."""

    S: Tensor
    """Σ γ^(t−i) (R_i k_i) v_iᵀ [B, H, K, V], float32 (float64 in a float64 module)."""
    position: Tensor
    """int64 [B]: real tokens since the last reset."""


class RetNet(Mixer):
    r"""S_t = γ_h S_{t-1} + (R_t k_t) v_tᵀ,  o_t = S_tᵀ R_t q_t / √K,  y_t = W_o [GroupNorm_H(o_t) ∘ swish(W_g x_t)].

    The decay of head h = 0, 1, … is γ_h = 1 − 2^(−5−h); with the rotation R_t it is xPos, whose scale is the same for all
    channels. In parallel o = (Q Kᵀ ∘ D) V with D_ti = γ^(t−i), i ≤ t.

    Args:
        width: D. heads: H, keys of width K = D / H (even). expand_v: all heads' values have width expand_v · D.
        rope_base: longest wavelength / 2π of the rotation. chunk: tokens of a chunk; it changes speed and rounding only.

    Shapes: x [B, T, D] -> [B, T, D]; state `RetNetState`. Raises ShapeError. O(T (D² + chunk · D + expand_v D² / H)) time,
    O(expand_v D² / H) state. Weights start Xavier-uniform, with gain 2^(−2.5) but for W_o, as in the authors' code.
    Differs from the paper: its three divisions for low precision are left out, which the group norm cancels but for its ε;
    frequencies are those of RoPE, base^(−2j/K).
    """

    decay: Tensor

    def __init__(self, width: int, *, heads: int = 4, expand_v: float = 2.0, rope_base: float = 10000.0, chunk: int = 64) -> None:
        super().__init__()
        values = int(width * expand_v)
        if heads < 1 or width < heads or width % heads or values < heads or values % heads:
            raise ShapeError(
                f"width and expand_v * width must be positive multiples of heads={heads}; received {width} and {values}."
            )
        if (width // heads) % 2:
            raise ShapeError(
                f"The rotation turns pairs: the head width must be even; received {width}/{heads} = {width // heads}."
            )
        if not 0 < rope_base < math.inf or chunk < 1 or chunk & (chunk - 1):
            raise ShapeError(f"rope_base must be positive and chunk a power of two; received {rope_base} and {chunk}.")
        self.width, self.heads, self.rope_base, self.chunk = width, heads, rope_base, chunk
        self.key_width, self.value_width = width // heads, values // heads
        self.q_proj, self.k_proj = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.v_proj, self.g_proj = nn.Linear(width, values, bias=False), nn.Linear(width, values, bias=False)
        self.o_proj = nn.Linear(values, width, bias=False)
        self.norm = nn.GroupNorm(heads, values)
        decay = torch.log1p(-(2.0 ** (-5.0 - torch.arange(heads, dtype=torch.float64))))
        self.register_buffer("decay", decay.unsqueeze(-1).to(self.q_proj.weight.dtype), persistent=False)
        for projection in (self.q_proj, self.k_proj, self.v_proj, self.g_proj):
            nn.init.xavier_uniform_(projection.weight, gain=2**-2.5)
        nn.init.xavier_uniform_(self.o_proj.weight)

    def init_state(self, batch: int) -> RetNetState:
        """Zeros."""
        weight = self.q_proj.weight
        dtype = torch.promote_types(weight.dtype, torch.float32)
        S = weight.new_zeros(batch, self.heads, self.key_width, self.value_width, dtype=dtype)
        return RetNetState(S, torch.zeros(batch, dtype=torch.int64, device=weight.device))

    def forward(
        self, x: Tensor, state: RetNetState | None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, RetNetState]:
        """Gated linear attention in chunks, its gate a number for each head. See `Mixer.forward`."""
        B, T, _ = x.shape
        state = self.init_state(B) if state is None else state
        if T == 0:
            return x, state
        if mask is not None:
            x = x.masked_fill(~mask.unsqueeze(-1), 0.0)  # whatever stands in the padding, even NaN, ends here
        where, position = count_positions(state.position, T, mask, reset)
        q, k, v = self._project(x, where)
        o, S = gated_linear_attention(q, k, v, self.decay, state=state.S, mask=mask, reset=reset, chunk=self.chunk)
        return self._output(o, x), RetNetState(S, position)

    def reference(
        self, x: Tensor, state: RetNetState | None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, RetNetState]:
        """Token by token: fade, write, read."""
        B, T, _ = x.shape
        S, position = self.init_state(B) if state is None else state
        real = x.new_ones(B, T, dtype=torch.bool) if mask is None else mask
        x = x.masked_fill(~real.unsqueeze(-1), 0.0)
        outputs = [x.new_zeros(B, 0, self.heads, self.value_width)]
        for t in range(T):
            if reset is not None:
                S, position = S.masked_fill(reset[:, t, None, None, None], 0.0), position.masked_fill(reset[:, t], 0)
            q, k, v = (part[:, 0] for part in self._project(x[:, t : t + 1], position.unsqueeze(1)))
            new = self.decay.exp().unsqueeze(-1) * S + k.unsqueeze(-1) * v.unsqueeze(-2)
            S, position = torch.where(real[:, t, None, None, None], new, S), position + real[:, t]
            outputs.append(torch.einsum("bhk,bhkv->bhv", q * self.key_width**-0.5, S).unsqueeze(1))
        return self._output(torch.cat(outputs, dim=1), x), RetNetState(S, position)

    def _project(self, x: Tensor, where: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries and keys [B, T, H, K], values [B, T, H, V]."""
        q, k = (p(x).unflatten(-1, (self.heads, self.key_width)).transpose(1, 2) for p in (self.q_proj, self.k_proj))
        q, k = (part.transpose(1, 2) for part in rotate((q, k), where, self.rope_base, least=torch.float64))
        return q, k, self.v_proj(x).unflatten(-1, (self.heads, self.value_width))

    def _output(self, o: Tensor, x: Tensor) -> Tensor:
        o = o.to(self.norm.weight.dtype).flatten(2)
        y = self.norm(o.flatten(0, 1)).view(o.shape)  # a token is an item
        return self.o_proj(y * F.silu(self.g_proj(x)))
