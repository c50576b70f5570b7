"""Performer: softmax attention estimated by positive orthogonal random features, causal and in constant memory.

Choromanski, Likhosherstov, Dohan, Song, Gane, Sarlos, Hawkins, Davis, Mohiuddin, Kaiser, Belanger, Colwell, Weller 2020,
"Rethinking Attention with Performers" (arXiv 2009.14794).
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from instar.errors import ShapeError
from instar.kernels.gated_linear import gated_linear_attention
from instar.kernels.random_features import (
    elu_features,
    exponents,
    orthogonal_gaussian,
    relu_features,
    running_maximum,
    softmax_features,
)
from instar.mixers.drawn_seed import drawn_seed
from instar.mixers.linear_attention import EPSILON
from instar.mixers.projecting import Projecting

Kernel = Literal["softmax", "relu", "elu"]


class PerformerState(NamedTuple):
    """Sums over the past, measured from `top`; float32 (float64 in a float64 module)."""

    S: Tensor
    """Σ φ(k_i) v_iᵀ [B, H, m, K]."""
    z: Tensor
    """Σ φ(k_i) [B, H, m]."""
    top: Tensor
    """[B, H]: the largest exponent of the keys so far, −∞ before the first (with relu features always 0)."""


class RandomFeatures(Projecting):
    """What both Performers share: projections, random directions `w` [m, K] (one set for all heads), and feature maps."""

    w: Tensor

    def __init__(self, width: int, heads: int, features: int, kernel: Kernel, seed: int | None, bias: bool) -> None:
        super().__init__(width, heads, bias)
        if features < 0:
            raise ShapeError(f"features must be positive (or 0 for K ln K); received {features}.")
        if kernel not in get_args(Kernel):
            raise ShapeError(f"kernel must be one of {', '.join(map(repr, get_args(Kernel)))}; received {kernel!r}.")
        self.kernel, self.lowest = kernel, -math.inf if kernel == "softmax" else 0.0
        self.features = features or max(1, math.ceil(self.head_width * math.log(self.head_width)))
        self.register_buffer("w", torch.empty(self.features, self.head_width))
        self.redraw(drawn_seed(seed))

    @property
    def floor(self) -> float:
        """Added to what is divided by: all features of 1 + elu may underflow together. Other maps have a floor of their own."""
        return EPSILON if self.kernel == "elu" else 0.0

    @torch.no_grad()
    def redraw(self, seed: int) -> None:
        """Other random directions, which are part of the state dict. The paper redraws every thousand steps of training."""
        drawn = orthogonal_gaussian(self.features, self.head_width, torch.Generator().manual_seed(seed))
        self.w.copy_(drawn)

    def query_features(self, q: Tensor) -> Tensor:
        """φ(q) [..., m]; each query is measured from its own largest exponent, which cancels in its output."""
        if self.kernel != "softmax":
            return self.simple(q)
        a = exponents(q, self.w.to(q))
        return softmax_features(a, a.amax(-1, keepdim=True))

    def simple(self, x: Tensor) -> Tensor:
        """φ(x) [..., m] of the kernels that estimate no softmax."""
        return (elu_features if self.kernel == "elu" else relu_features)(x, self.w.to(x))


class Performer(RandomFeatures):
    r"""o_t = φ(q_t)ᵀ S_t / φ(q_t)ᵀ z_t with S_t = Σ_{i≤t} φ(k_i) v_iᵀ, z_t = Σ_{i≤t} φ(k_i), and for r = 1 … m

        φ_r(x) = m^(−1/2) (exp(w_r·x' − |x'|²/2 − c) + ε),   x' = x K^(−1/4),   so that E[φ(q)ᵀφ(k)] ∝ exp(q·k / √K)  (ε = 0)

    The rows w_r are Gaussian, orthogonal in blocks of K. c keeps exponentials in range: for a query its own largest exponent, for
    keys the largest so far. When that grows, the sums are scaled down with it, which is a gated recurrence.

    Args:
        width: D, a multiple of heads. heads: H, each of width K = D / H.
        features: m; 0 means ⌈K ln K⌉. kernel: "softmax" as above; "relu" with φ = m^(−1/2) (max(0, w_r·x') + 10⁻³) and "elu" with
            φ = m^(−1/2) (1 + elu(w_r·x')), the map of linear attention, which estimate no softmax.
        seed: of the random directions, None for one of torch's generator; see `redraw`.
        bias: biases of the four projections. chunk: tokens of a chunk; it changes speed and rounding only.

    Shapes: x [B, T, D] -> [B, T, D]; state `PerformerState`. Raises ShapeError. O(T (D² + (chunk + D / H) m H)) time, O(m D)
    state. Differs from the paper: the largest exponent of the keys is a running one (the authors' looks ahead), so that ε counts
    less for tokens before it grew; directions are redrawn only on request.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int = 4,
        features: int = 0,
        kernel: Kernel = "softmax",
        seed: int | None = None,
        bias: bool = False,
        chunk: int = 64,
    ) -> None:
        super().__init__(width, heads, features, kernel, seed, bias)
        if chunk < 1 or chunk & (chunk - 1):
            raise ShapeError(f"chunk must be a power of two; received {chunk}.")
        self.chunk = chunk

    def init_state(self, batch: int) -> PerformerState:
        """Empty sums."""
        weight = self.k_proj.weight
        dtype = torch.promote_types(weight.dtype, torch.float32)
        S = weight.new_zeros(batch, self.heads, self.features, self.head_width, dtype=dtype)
        return PerformerState(S, S.new_zeros(S.shape[:3]), S.new_full(S.shape[:2], self.lowest))

    def forward(
        self, x: Tensor, state: PerformerState | None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, PerformerState]:
        """One gated recurrence for both sums: z is one more column of S, written by a value of 1. See `Mixer.forward`."""
        B, T, _ = x.shape
        S, z, top = self.init_state(B) if state is None else state
        if T == 0:
            return x, PerformerState(S, z, top)
        if mask is not None:
            x = x.masked_fill(~mask.unsqueeze(-1), 0.0)  # whatever stands in the padding, even NaN, ends here
        q, k, v = (part.transpose(1, 2) for part in self.project(x))
        with torch.autocast(x.device.type, enabled=False):
            q, k, v = (part.to(S.dtype) for part in (q, k, v))
            gate: Tensor | None = None
            if self.kernel != "softmax":
                keys = self.simple(k)
            else:
                a = exponents(k, self.w.to(k))
                largest = a.amax(-1)
                if mask is not None:
                    largest = largest.masked_fill(~mask.unsqueeze(-1), -torch.inf)
                tops = running_maximum(largest, top, reset)
                earlier = torch.cat([top.unsqueeze(1), tops[:, :-1]], dim=1)
                first = earlier == -torch.inf  # nothing to scale down
                if reset is not None:
                    first = first | reset.unsqueeze(-1)
                at = tops.masked_fill(tops == -torch.inf, 0.0)  # where only padding has been seen
                gate = torch.where(first, 0.0, earlier.masked_fill(first, 0.0) - at).unsqueeze(-1)
                if mask is not None:  # measured from itself: what is masked later must not overflow on the way
                    a = torch.where(mask[:, :, None, None], a, at.unsqueeze(-1))
                keys, top = softmax_features(a, at.unsqueeze(-1)), tops[:, -1]
            joint = torch.cat([S, z.unsqueeze(-1)], dim=-1)
            values = torch.cat([v, torch.ones_like(v[..., :1])], dim=-1)
            o, joint = gated_linear_attention(
                self.query_features(q), keys, values, gate, scale=1.0, state=joint, mask=mask, reset=reset, chunk=self.chunk
            )
            norm = o[..., -1:] + self.floor
            y = o[..., :-1] / norm.masked_fill(norm == 0, 1.0)
        return self.o_proj(y.to(x.dtype).flatten(2)), PerformerState(joint[..., :-1], joint[..., -1], top)

    def reference(
        self, x: Tensor, state: PerformerState | None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, PerformerState]:
        """The sums, token by token."""
        B, T, _ = x.shape
        S, z, top = self.init_state(B) if state is None else state
        real = x.new_ones(B, T, dtype=torch.bool) if mask is None else mask
        x = x.masked_fill(~real.unsqueeze(-1), 0.0)
        outputs = [x.new_zeros(B, 0, self.width)]
        for t in range(T):
            if reset is not None:
                start = reset[:, t, None]
                S, z = S.masked_fill(start[..., None, None], 0.0), z.masked_fill(start.unsqueeze(-1), 0.0)
                top = top.masked_fill(start, self.lowest)
            new = real[:, t, None]
            q, k, v = (part[:, :, 0].to(S.dtype) for part in self.project(x[:, t : t + 1]))
            if self.kernel != "softmax":
                keys, fade, largest = self.simple(k), torch.ones_like(top), top
            else:
                a = exponents(k, self.w.to(k))
                largest = torch.maximum(top, a.amax(-1))
                keys, fade = softmax_features(a, largest.unsqueeze(-1)), (top - largest).exp()
            z = torch.where(new.unsqueeze(-1), fade.unsqueeze(-1) * z + keys, z)
            S = torch.where(new[..., None, None], fade[..., None, None] * S + keys.unsqueeze(-1) * v.unsqueeze(-2), S)
            top = torch.where(new, largest, top)
            queries = self.query_features(q)
            norm = torch.einsum("bhm,bhm->bh", queries, z).unsqueeze(-1) + self.floor
            read = torch.einsum("bhm,bhmk->bhk", queries, S) / norm.masked_fill(norm == 0, 1.0)
            outputs.append(read.to(x.dtype).flatten(1).unsqueeze(1))
        return self.o_proj(torch.cat(outputs, dim=1)), PerformerState(S, z, top)
