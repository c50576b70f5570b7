"""A mixer whose state is a small network that learns the tokens it has read: what ATLAS, OmegaNet and Titans have in common.

Behrouz, Zhong, Mirrokni 2024, "Titans: Learning to Memorize at Test Time" (arXiv 2501.00663); Behrouz et al. 2025, "ATLAS:
Learning to Optimally Memorize the Context at Test Time" (arXiv 2505.23735).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.errors import ShapeError
from instar.interfaces import Mixer
from instar.kernels.omega_rule import MemoryState, OmegaRule
from instar.kernels.omega_rule_reference import recurrent
from instar.kernels.polynomial_features import Kind, PolynomialFeatures
from instar.kernels.short_convolution import short_convolution
from instar.mixers.delta_net import unit

FAINTEST = -20.0
"""Least log α and log θ: sums of them over a chunk stay exact."""


class NeuralMemoryState(NamedTuple):
    """What is kept between calls, float32 (float64 in a float64 module): its size does not grow."""

    memory: MemoryState
    past: Tensor
    """Inputs [B, conv_size - 1, 3 D] of the convolutions of q, k and v side by side."""


class NeuralMemory(Mixer):
    """q, k, v = convolved projections of x, q and k of length 1; o_t = M(φ(q_t); W_t) as of `OmegaRule`;
    y_t = W_o [norm(o_t) ∘ swish(W_g x_t)].

    α_t, θ_t, γ_t = σ(W x_t + b), a number each for each head (and each of the c tokens in the window), and
    η_t = largest_step · σ(W x_t + b). γ is divided by c, so that a token that is seen c times is not learnt c times. Initial
    weights of the memory are parameters.

    Knobs are the constructor's of `Atlas`, `OmegaNet` and `Titans`. Raises ShapeError.
    """

    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        rule: OmegaRule,
        expansion: int,
        degree: int,
        features: Kind,
        conv_size: int,
        output_gate: bool,
        largest_step: float,
    ) -> None:
        super().__init__()
        if heads < 1 or width < 1 or width % heads:
            raise ShapeError(f"width must be a positive multiple of heads; received width={width}, heads={heads}.")
        if min(expansion, conv_size) < 1 or not 0 < largest_step < math.inf:
            raise ShapeError(
                "expansion, conv_size and largest_step must be positive and finite; received "
                f"expansion={expansion}, conv_size={conv_size}, largest_step={largest_step}."
            )
        self.width, self.heads, self.head_width, self.rule = width, heads, width // heads, rule
        self.conv_size, self.output_gate, self.largest_step = conv_size, output_gate, largest_step
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width, bias=False) for _ in "qkv")
        self.q_conv1d, self.k_conv1d, self.v_conv1d = (
            nn.Conv1d(width, width, conv_size, groups=width, bias=False) for _ in "qkv"
        )
        counts = {"alpha": 1, "theta": int(rule.momentum), "eta": 1, "gamma": rule.window if rule.window > 1 else 0}
        self._gates = {name: count for name, count in counts.items() if count}
        self.gate_proj = nn.Linear(width, heads * sum(self._gates.values()))
        self.features = PolynomialFeatures(self.head_width, degree, features)
        shapes = rule.network.shapes(self.features.size, self.head_width, expansion)
        self.initial = nn.ParameterList([torch.empty(heads, *shape) for shape in shapes])
        if output_gate:
            self.g_proj = nn.Linear(width, width, bias=False)
        self.o_norm = nn.RMSNorm(self.head_width, eps=1e-5)
        self.o_proj = nn.Linear(width, width, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """N(0, 0.02²) for projections, Xavier-uniform for the memory (ones for a gain); gates start near their biases: α 0.99,
        θ 0.7, η an eighth of its largest, γ 0.9 before it is divided by c."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
        start = {"alpha": 4.6, "theta": 0.85, "eta": -1.95, "gamma": 2.2}
        with torch.no_grad():
            bias = [torch.full((count,), start[name]) for name, count in self._gates.items()]
            self.gate_proj.bias.copy_(torch.cat(bias).repeat(self.heads))
            for weight in self.initial:
                for head in weight:
                    nn.init.ones_(head) if head.dim() == 1 else nn.init.xavier_uniform_(head)

    def init_state(self, batch: int) -> NeuralMemoryState:
        """The learnt initial weights, no momentum, no tokens."""
        start = self._initial()
        past = start[0].new_zeros(batch, self.conv_size - 1, 3 * self.width)
        return NeuralMemoryState(self.rule.start(start, batch, self.head_width, self.head_width), past)

    def forward(
        self, x: Tensor, state: NeuralMemoryState | None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, NeuralMemoryState]:
        """In chunks. See `Mixer.forward`."""
        if x.shape[1] == 0:
            return x, self.init_state(x.shape[0]) if state is None else state
        past = self.init_state(x.shape[0]).past if state is None else state.past
        if mask is not None:
            x = x.masked_fill(~mask.unsqueeze(-1), 0.0)  # whatever stands in the padding, even NaN, ends here
        kind = past.dtype
        qkv, past = short_convolution(self._project(x), self._taps(), past, mask=mask, reset=reset)
        values = *self._heads(qkv), *self._gate_values(x)
        with torch.autocast(x.device.type, enabled=False):
            o, memory = self.rule(
                self._initial(), self.features, *values, state=None if state is None else state.memory, mask=mask, reset=reset
            )
        return self._output(o, x), NeuralMemoryState(memory, past.to(kind))

    def reference(
        self, x: Tensor, state: NeuralMemoryState | None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, NeuralMemoryState]:
        """Token by token: convolve, then learn and read (`omega_rule_reference`: the inner gradients by autograd)."""
        if x.shape[1] == 0:
            return x, self.init_state(x.shape[0]) if state is None else state
        before = self.init_state(x.shape[0]) if state is None else state
        past, mixed = before.past, []
        if mask is not None:
            x = x.masked_fill(~mask.unsqueeze(-1), 0.0)
        for t in range(x.shape[1]):
            past = past if reset is None else past.masked_fill(reset[:, t, None, None], 0.0)
            window = torch.cat([past, self._project(x[:, t : t + 1])], dim=1)
            mixed.append((window * self._taps()[:, 0].T).sum(1, keepdim=True))
            past = window[:, 1:] if mask is None else torch.where(mask[:, t, None, None], window[:, 1:], past)
        values = *self._heads(torch.cat(mixed, dim=1)), *self._gate_values(x)
        o, memory = recurrent(self.rule, [*self._initial()], self.features, *values, state=before.memory, mask=mask, reset=reset)
        return self._output(o, x), NeuralMemoryState(memory, past)

    def _initial(self) -> list[Tensor]:
        """The memory's weights at the start of a sequence, [H, ...] each, in float32 at least."""
        return [w.to(torch.promote_types(w.dtype, torch.float32)) for w in self.initial]

    def _project(self, x: Tensor) -> Tensor:
        """q, k and v before convolution, side by side."""
        return torch.cat([self.q_proj(x), self.k_proj(x), self.v_proj(x)], dim=-1)

    def _taps(self) -> Tensor:
        """The weights of the three convolutions, as of one."""
        return torch.cat([getattr(self, f"{name}_conv1d").weight for name in "qkv"])

    def _heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Swish, heads [B, T, H, K] each, in float32 at least; q and k of length 1."""
        qkv = F.silu(qkv).to(torch.promote_types(qkv.dtype, torch.float32))
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in qkv.chunk(3, dim=-1))
        return unit(q), unit(k), v

    def _gate_values(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        """log α, log θ, η [B, T, H] and γ / c [B, T, H, c]."""
        logits = self.gate_proj(x)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).unflatten(-1, (self.heads, -1))
        found = dict(zip(self._gates, logits.split([*self._gates.values()], dim=-1), strict=True))
        kept = {name: F.logsigmoid(found[name]).clamp(min=FAINTEST).squeeze(-1) for name in ("alpha", "theta") if name in found}
        eta = self.largest_step * found["eta"].sigmoid().squeeze(-1)
        gamma = found["gamma"].sigmoid() / self.rule.window if "gamma" in found else None
        return kept["alpha"], kept.get("theta"), eta, gamma

    def _output(self, o: Tensor, x: Tensor) -> Tensor:
        y = self.o_norm(o.to(self.o_proj.weight.dtype)).flatten(2)  # in float32 under autocast
        return self.o_proj(y * F.silu(self.g_proj(x)) if self.output_gate else y)
