"""Gated linear attention: a matrix state for each head, forgotten channel by channel as the data say.

Yang, Wang, Shen, Panda, Kim, "Gated Linear Attention Transformers with Hardware-Efficient Training", 2023 (arXiv 2312.06635).
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.errors import ShapeError
from instar.interfaces import Mixer
from instar.kernels.gated_linear import gated_linear_attention
from instar.kernels.short_convolution import short_convolution

Gate = Literal["vector", "scalar", "fixed", "none"]


class GLAState(NamedTuple):
    """What is kept between calls: its size does not grow."""

    S: Tensor
    """[B, H, K, V], float32 (float64 in a float64 module)."""
    convolutions: tuple[Tensor, ...]
    """Inputs [B, conv_size - 1, ·] of the convolutions of q, k and v; empty without them."""


class GLA(Mixer):
    r"""S_t = diag(α_t) S_{t-1} + k_t v_tᵀ,  o_t = S_tᵀ q_t / √K,  y_t = W_o [norm(o_t) ∘ swish(W_r x_t)].

    The gate is α_t = σ(W_2 W_1 x_t + b)^(1 / gate_temperature), computed as a logarithm in float32; W_1 has rank `gate_rank`.

    Args:
        width: D. heads: H. expand_k, expand_v: all heads' keys and values have widths expand_k · D and expand_v · D.
        gate: "vector" a gate for each key channel (the paper); "scalar" one for each head; "fixed" the decay of RetNet,
            1 - 2^(-5-h) for head h; "none" linear attention without normaliser.
        gate_rank, gate_temperature: as above. gate_floor: the log gate is at least this; None for no floor.
        kv_heads: heads of keys, values and gates, a divisor of heads; 0 means as many as heads.
        feature_map: "relu" or "elu" (1 + elu) on queries and keys; None for the identity.
        conv_size: tokens of a causal convolution, followed by swish, on q, k and v; 0 for none.
        output_gate: multiply by swish(W_r x). norm: "rms" with a weight shared by heads (the authors' library), or "layer"
            without weight and with a bias in W_r (the paper).
        chunk: tokens of a chunk; it changes speed and rounding only.

    Shapes: x [B, T, D] -> [B, T, D]; state `GLAState`. Raises ShapeError.
    O(T (D² + chunk · D + expand_k expand_v D² / H)) time, O(expand_k expand_v D² / H) state.
    State dicts of the authors' layer load (its fused norm `g_norm_swish_gate` is this `g_norm`).
    Differs from the paper: RMS norm and no bias in W_r by default, as in the library; outputs at padding mean nothing.
    """

    decay: Tensor

    def __init__(
        self,
        width: int,
        *,
        heads: int = 4,
        expand_k: float = 0.5,
        expand_v: float = 1.0,
        gate: Gate = "vector",
        gate_rank: int = 16,
        gate_temperature: float = 16.0,
        gate_floor: float | None = None,
        kv_heads: int = 0,
        feature_map: Literal["relu", "elu"] | None = None,
        conv_size: int = 0,
        output_gate: bool = True,
        norm: Literal["rms", "layer"] = "rms",
        chunk: int = 64,
    ) -> None:
        super().__init__()
        kv_heads = kv_heads or heads
        keys, values = int(width * expand_k), int(width * expand_v)
        if heads < 1 or keys < 1 or values < 1 or keys % heads or values % heads:
            raise ShapeError(
                f"expand_k * width and expand_v * width must be positive multiples of heads={heads}; "
                f"received {keys} and {values} at width={width}."
            )
        if kv_heads < 1 or heads % kv_heads:
            raise ShapeError(f"kv_heads must divide heads={heads} (or be 0 for as many); received {kv_heads}.")
        for name, value, known in (
            ("gate", gate, ("vector", "scalar", "fixed", "none")),
            ("feature_map", feature_map, (None, "relu", "elu")),
            ("norm", norm, ("rms", "layer")),
        ):
            if value not in known:
                raise ShapeError(f"{name} must be one of {', '.join(map(repr, known))}; received {value!r}.")
        learned = gate in ("vector", "scalar")
        temperate = 0 < gate_temperature < math.inf
        if conv_size < 0 or (learned and gate_rank < 1) or not temperate or (gate_floor is not None and not gate_floor <= 0):
            raise ShapeError(
                "conv_size must be at least 0, gate_rank at least 1, gate_temperature positive and finite, gate_floor at most 0; "
                f"received {conv_size}, {gate_rank}, {gate_temperature} and {gate_floor}."
            )
        if chunk < 1 or chunk & (chunk - 1):
            raise ShapeError(f"chunk must be a power of two; received {chunk}.")
        self.width, self.heads, self.kv_heads, self.groups = width, heads, kv_heads, heads // kv_heads
        self.key_width, self.value_width = keys // heads, values // heads
        self.gate, self.gate_temperature, self.gate_floor = gate, gate_temperature, gate_floor
        self.feature_map, self.conv_size, self.output_gate, self.chunk = feature_map, conv_size, output_gate, chunk
        self.q_proj = nn.Linear(width, keys, bias=False)
        self.k_proj = nn.Linear(width, kv_heads * self.key_width, bias=False)
        self.v_proj = nn.Linear(width, kv_heads * self.value_width, bias=False)
        if output_gate:
            self.g_proj = nn.Linear(width, values, bias=norm == "layer")
        if conv_size:
            for name in "qkv":
                channels = getattr(self, f"{name}_proj").out_features
                setattr(self, f"{name}_conv1d", nn.Conv1d(channels, channels, conv_size, groups=channels, bias=False))
        if learned:
            gates = kv_heads * (self.key_width if gate == "vector" else 1)
            self.gk_proj = nn.Sequential(nn.Linear(width, gate_rank, bias=False), nn.Linear(gate_rank, gates))
        if gate == "fixed":
            decay = torch.log1p(-(2.0 ** (-5.0 - torch.arange(heads, dtype=torch.float64))))
            self.register_buffer("decay", decay.unsqueeze(-1).to(self.q_proj.weight.dtype), persistent=False)
        self.g_norm: nn.Module = (
            nn.RMSNorm(self.value_width, eps=1e-5)
            if norm == "rms"
            else nn.LayerNorm(self.value_width, eps=1e-5, elementwise_affine=False)
        )
        self.o_proj = nn.Linear(values, width, bias=False)
        self.reset_parameters()
        self.register_load_state_dict_pre_hook(_rename)

    def reset_parameters(self) -> None:
        """N(0, 0.02²) and zero biases; queries, keys and the gate's two matrices Xavier-uniform with gain 2^(-2.5)."""
        for name, module in self.named_modules():
            if not isinstance(module, nn.Linear):
                continue
            if name.split("_proj")[0] in ("q", "k", "gk"):
                nn.init.xavier_uniform_(module.weight, gain=2**-2.5)
            else:
                nn.init.normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def init_state(self, batch: int) -> GLAState:
        """Zeros."""
        weight = self.q_proj.weight
        kind = torch.promote_types(weight.dtype, torch.float32)
        S = weight.new_zeros(batch, self.heads, self.key_width, self.value_width, dtype=kind)
        widths = [getattr(self, f"{name}_proj").out_features for name in "qkv"] if self.conv_size else []
        return GLAState(S, tuple(weight.new_zeros(batch, self.conv_size - 1, width, dtype=kind) for width in widths))

    def forward(
        self, x: Tensor, state: GLAState | None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, GLAState]:
        """In chunks, or by the recurrence for a few tokens. See `Mixer.forward`."""
        state = self.init_state(x.shape[0]) if state is None else state
        if mask is not None:
            x = x.masked_fill(~mask.unsqueeze(-1), 0.0)  # whatever stands in the padding, even NaN, ends here
        qkv, convolutions = [self.q_proj(x), self.k_proj(x), self.v_proj(x)], []
        if self.conv_size:
            for i, (name, past) in enumerate(zip("qkv", state.convolutions, strict=True)):
                weight = getattr(self, f"{name}_conv1d").weight
                y, past = short_convolution(qkv[i], weight, past, mask=mask, reset=reset)
                qkv[i] = F.silu(y)
                convolutions.append(past.to(state.S.dtype))
        q, k, v = self._heads(*qkv)
        o, S = gated_linear_attention(q, k, v, self._log_gate(x), state=state.S, mask=mask, reset=reset, chunk=self.chunk)
        return self._output(o, x), GLAState(S, tuple(convolutions))

    def reference(
        self, x: Tensor, state: GLAState | None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, GLAState]:
        """Token by token: convolve, forget, write, read."""
        B, T, _ = x.shape
        S, convolutions = self.init_state(B) if state is None else state
        real = x.new_ones(B, T, dtype=torch.bool) if mask is None else mask
        start = torch.zeros_like(real) if reset is None else reset
        x = x.masked_fill(~real.unsqueeze(-1), 0.0)
        log_gate, outputs = self._log_gate(x), [x.new_zeros(B, 0, self.heads, self.value_width)]
        for t in range(T):
            drop, keep = start[:, t, None, None], real[:, t, None, None]
            S = S.masked_fill(drop.unsqueeze(-1), 0.0)
            parts, pasts = [p(x[:, t : t + 1]) for p in (self.q_proj, self.k_proj, self.v_proj)], []
            for i, past in enumerate(convolutions):
                past = past.masked_fill(drop, 0.0)
                window = torch.cat([past, parts[i]], dim=1)
                parts[i] = F.silu((window * getattr(self, f"{'qkv'[i]}_conv1d").weight[:, 0].T).sum(1, keepdim=True))
                pasts.append(torch.where(keep, window[:, 1:], past))
            q, k, v = (part[:, 0] for part in self._heads(*parts))
            g = S.new_zeros(1, 1, 1) if log_gate is None else log_gate[:, t] if log_gate.dim() == 4 else log_gate
            updated = g.exp().unsqueeze(-1) * S + k.unsqueeze(-1) * v.unsqueeze(-2)
            S, convolutions = torch.where(keep.unsqueeze(-1), updated, S), tuple(pasts)
            outputs.append(torch.einsum("bhk,bhkv->bhv", q * self.key_width**-0.5, S).unsqueeze(1))
        return self._output(torch.cat(outputs, dim=1), x), GLAState(S, convolutions)

    def _heads(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, T, ·] -> [B, T, H, K], [B, T, H, K], [B, T, H, V]; the feature map; keys and values repeated for their queries."""
        if self.feature_map == "relu":
            q, k = q.relu(), k.relu()
        elif self.feature_map == "elu":
            q, k = 1 + F.elu(q), 1 + F.elu(k)
        q = q.unflatten(-1, (self.heads, self.key_width))
        k = k.unflatten(-1, (self.kv_heads, self.key_width))
        v = v.unflatten(-1, (self.kv_heads, self.value_width))
        if self.groups > 1:
            k, v = (part.repeat_interleave(self.groups, dim=2) for part in (k, v))
        return q, k, v

    def _log_gate(self, x: Tensor) -> Tensor | None:
        """log α: [B, T, H, K], [B, T, H, 1], [H, 1] or None."""
        if self.gate == "none":
            return None
        if self.gate == "fixed":
            return self.decay
        logits = self.gk_proj(x).unflatten(-1, (self.kv_heads, -1))
        g = F.logsigmoid(logits.to(torch.promote_types(logits.dtype, torch.float32))) / self.gate_temperature
        if self.gate_floor is not None:
            g = g.clamp_min(self.gate_floor)
        return g.repeat_interleave(self.groups, dim=2) if self.groups > 1 else g

    def _output(self, o: Tensor, x: Tensor) -> Tensor:
        y = self.g_norm(o.to(self.o_proj.weight.dtype)).flatten(2)  # in float32 under autocast
        return self.o_proj(y * F.silu(self.g_proj(x)) if self.output_gate else y)


def _rename(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """The authors' fused norm and gate has the same weight under another name."""
    fused = f"{prefix}g_norm_swish_gate.weight"
    if fused in state_dict:
        state_dict[f"{prefix}g_norm.weight"] = state_dict.pop(fused)
