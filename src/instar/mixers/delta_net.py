"""DeltaNet: a matrix state that first looks up what it answers to a key, and writes only the difference.

Schlag, Irie, Schmidhuber, "Linear Transformers Are Secretly Fast Weight Programmers", 2021 (arXiv 2102.11174); Yang, Wang, Zhang,
Shen, Kim, "Parallelizing Linear Transformers with the Delta Rule over Sequence Length", 2024 (arXiv 2406.06484).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.errors import ShapeError
from instar.interfaces import Mixer
from instar.kernels.delta_rule import gated_delta_rule
from instar.kernels.short_convolution import short_convolution

EPSILON = 1e-6
"""Added to the squared length of queries and keys, as in the authors' library."""


class DeltaState(NamedTuple):
    """What is kept between calls, float32 (float64 in a float64 module): its size does not grow."""

    S: Tensor
    """[B, H, K, V]."""
    past: Tensor
    """Inputs [B, conv_size - 1, ·] of the convolution of q, k and v side by side; no tokens without one."""


class DeltaNet(Mixer):
    r"""S_t = (I - β_t k_t k_tᵀ) S_{t-1} + β_t k_t v_tᵀ,  o_t = S_tᵀ q_t / √K,  y_t = W_o norm(o_t).

    q, k and v are projections of x, each through a causal convolution of its own and swish; q and k are then divided by their
    length for each head. β_t = σ(W_b x_t), a number for each head: 1 replaces what was stored under k_t, 0 leaves it.

    Args:
        width: D. heads: H. expand_k, expand_v: all heads' keys and values have widths expand_k · D and expand_v · D.
        conv_size: tokens of the convolutions; 0 for none (swish stays).
        output_gate: norm(o_t) ∘ swish(W_g x_t) in place of norm(o_t).
        negative_eigenvalues: β_t = 2 σ(W_b x_t), so that I - β k kᵀ can reflect: needed to count modulo 2 (arXiv 2411.12537).
        chunk: tokens of a chunk; it changes speed and rounding only.

    Shapes: x [B, T, D] -> [B, T, D]; state `DeltaState`. Raises ShapeError.
    O(T (D² + chunk · D + expand_k expand_v D² / H)) time, O(expand_k expand_v D² / H) state.
    State dicts of the authors' layer load. Differs from the paper: the start of the convolutions (torch's); other
    feature maps and sum-normalised keys of the authors' library are left out.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int = 4,
        expand_k: float = 1.0,
        expand_v: float = 1.0,
        conv_size: int = 4,
        output_gate: bool = False,
        negative_eigenvalues: bool = False,
        chunk: int = 64,
    ) -> None:
        super().__init__()
        keys, values = int(width * expand_k), int(width * expand_v)
        if heads < 1 or keys < 1 or values < 1 or keys % heads or values % heads:
            raise ShapeError(
                f"expand_k * width and expand_v * width must be positive multiples of heads={heads}; "
                f"received {keys} and {values} at width={width}."
            )
        if conv_size < 0:
            raise ShapeError(f"conv_size must be at least 0; received {conv_size}.")
        if chunk < 1 or chunk & (chunk - 1):
            raise ShapeError(f"chunk must be a power of two; received {chunk}.")
        self.width, self.heads, self.conv_size, self.chunk = width, heads, conv_size, chunk
        self.key_width, self.value_width = keys // heads, values // heads
        self.output_gate, self.strongest = output_gate, 2.0 if negative_eigenvalues else 1.0
        self.q_proj = nn.Linear(width, keys, bias=False)
        self.k_proj = nn.Linear(width, keys, bias=False)
        self.v_proj = nn.Linear(width, values, bias=False)
        self.b_proj = nn.Linear(width, heads, bias=False)
        if conv_size:
            for name, channels in (("q", keys), ("k", keys), ("v", values)):
                setattr(self, f"{name}_conv1d", nn.Conv1d(channels, channels, conv_size, groups=channels, bias=False))
        if output_gate:
            self.g_proj = nn.Linear(width, values, bias=False)
        self.o_norm = nn.RMSNorm(self.value_width, eps=1e-5)
        self.o_proj = nn.Linear(values, width, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """N(0, 0.02²) for all projections; convolutions as of torch."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)

    def init_state(self, batch: int) -> DeltaState:
        """Zeros."""
        weight = self.q_proj.weight
        kind = torch.promote_types(weight.dtype, torch.float32)
        S = weight.new_zeros(batch, self.heads, self.key_width, self.value_width, dtype=kind)
        channels = self.heads * (2 * self.key_width + self.value_width)
        return DeltaState(S, weight.new_zeros(batch, max(0, self.conv_size - 1), channels, dtype=kind))

    def forward(
        self, x: Tensor, state: DeltaState | None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, DeltaState]:
        """In chunks, or by the recurrence for one token. See `Mixer.forward`."""
        S, past = self.init_state(x.shape[0]) if state is None else state
        if mask is not None:
            x = x.masked_fill(~mask.unsqueeze(-1), 0.0)  # whatever stands in the padding, even NaN, ends here
        qkv = self._project(x)
        if self.conv_size:
            kind = past.dtype
            qkv, past = short_convolution(qkv, self._taps(), past, mask=mask, reset=reset)
            past = past.to(kind)
        q, k, v = self._heads(qkv)
        beta, log_gate = self._strength(x), self._log_gate(x)
        o, S = gated_delta_rule(q, k, v, beta, log_gate, state=S, mask=mask, reset=reset, chunk=self.chunk)
        return self._output(o, x), DeltaState(S, past)

    def reference(
        self, x: Tensor, state: DeltaState | None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, DeltaState]:
        """Token by token: convolve, forget (where there is a gate), look up, write the difference, read."""
        B, T, _ = x.shape
        S, past = self.init_state(B) if state is None else state
        real = x.new_ones(B, T, dtype=torch.bool) if mask is None else mask
        start = torch.zeros_like(real) if reset is None else reset
        x = x.masked_fill(~real.unsqueeze(-1), 0.0)
        beta, log_gate, outputs = self._strength(x), self._log_gate(x), [x.new_zeros(B, 0, self.heads, self.value_width)]
        for t in range(T):
            drop, keep = start[:, t, None, None], real[:, t, None, None]
            S, past = S.masked_fill(drop.unsqueeze(-1), 0.0), past.masked_fill(drop, 0.0)
            qkv = self._project(x[:, t : t + 1])
            if self.conv_size:
                window = torch.cat([past, qkv], dim=1)
                qkv = (window * self._taps()[:, 0].T).sum(1, keepdim=True)
                past = torch.where(keep, window[:, 1:], past)
            q, k, v = (part[:, 0] for part in self._heads(qkv))
            kept = S if log_gate is None else log_gate[:, t, :, None, None].exp() * S
            known = torch.einsum("bhk,bhkv->bhv", k, kept)
            updated = kept + k.unsqueeze(-1) * (beta[:, t].unsqueeze(-1) * (v - known)).unsqueeze(-2)
            S = torch.where(keep.unsqueeze(-1), updated, S)
            outputs.append(torch.einsum("bhk,bhkv->bhv", q * self.key_width**-0.5, S).unsqueeze(1))
        return self._output(torch.cat(outputs, dim=1), x), DeltaState(S, past)

    def _project(self, x: Tensor) -> Tensor:
        """q, k and v before convolution, side by side."""
        return torch.cat([self.q_proj(x), self.k_proj(x), self.v_proj(x)], dim=-1)

    def _taps(self) -> Tensor:
        """The weights of the three convolutions, as of one."""
        return torch.cat([getattr(self, f"{name}_conv1d").weight for name in "qkv"])

    def _heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Swish, heads [B, T, H, K], [B, T, H, K], [B, T, H, V]; q and k of length 1."""
        widths = [self.heads * self.key_width] * 2 + [self.heads * self.value_width]
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in F.silu(qkv).split(widths, dim=-1))
        return unit(q), unit(k), v

    def _strength(self, x: Tensor) -> Tensor:
        """β [B, T, H]."""
        logits = self.b_proj(x)
        return self.strongest * logits.to(torch.promote_types(logits.dtype, torch.float32)).sigmoid()

    def _log_gate(self, x: Tensor) -> Tensor | None:
        """log α [B, T, H]; None: nothing is forgotten but what is overwritten."""
        return None

    def _output(self, o: Tensor, x: Tensor) -> Tensor:
        y = self.o_norm(o.to(self.o_proj.weight.dtype)).flatten(2)  # in float32 under autocast
        return self.o_proj(y * F.silu(self.g_proj(x)) if self.output_gate else y)


def unit(x: Tensor) -> Tensor:
    """x / |x| over the last axis, in float32 at least."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + EPSILON)
