"""Projections around a Hopfield association, with the parameters of the authors' layers by their names, so that theirs load."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.errors import CheckpointError, ShapeError
from instar.kernels.hopfield import Eps, Steps
from instar.kernels.hopfield_few_states import associate_few
from instar.mixers.association import INITIAL_STD, Association

_KNOBS = "_extra_state"


class HopfieldCore(nn.Module):
    """Q = R W_Q, K = Y W_K, V = P W_V (or Y W_K W_V, `connected`) for H heads, and W_O behind them.

    A static input is not projected: every head has it as it is. See `Hopfield` for the arguments. The state dict holds β, steps
    and eps beside the parameters, in float64; one without them, such as the authors', loads and leaves them as they are.
    """

    in_proj_weight: nn.Parameter | None
    q_proj_weight: nn.Parameter | None
    k_proj_weight: nn.Parameter | None
    v_proj_weight: nn.Parameter | None
    in_proj_bias: nn.Parameter | None
    bias_k: nn.Parameter | None
    bias_v: nn.Parameter | None
    p_norm_weight: nn.Parameter | None
    p_norm_bias: nn.Parameter | None

    def __init__(
        self,
        state_size: int | None,
        stored_size: int | None,
        projection_size: int | None,
        hidden_size: int | None,
        pattern_size: int | None,
        output_size: int | None,
        heads: int,
        *,
        beta: float | tuple[float, ...] | None,
        steps: Steps,
        eps: Eps,
        learn_beta: bool,
        static: tuple[bool, bool, bool],
        connected: bool,
        normalize: bool,
        normalize_affine: bool,
        normalize_eps: float,
        bias: bool,
        bias_pattern: bool,
        zero_pattern: bool,
        project_out: bool,
    ) -> None:
        super().__init__()
        self.heads, self.connected, self.zero_pattern, self.normalize_eps = heads, connected, zero_pattern, normalize_eps
        self.static_state, self.static_stored, self.static_projection = static
        self.normalize = normalize
        self.bare = all(static) and not (connected or normalize or project_out)
        """Nothing is projected: the pure network, of any width."""
        if heads < 1:
            raise ShapeError(f"num_heads must be positive; received {heads}.")
        if not self.bare:
            if state_size is None:
                raise ShapeError("input_size is needed unless all three inputs are static and nothing else is projected.")
            if hidden_size is None and state_size % heads:
                raise ShapeError(f"input_size={state_size} is no multiple of num_heads={heads}: give hidden_size, of one head.")
        width = 0 if self.bare or state_size is None else hidden_size or state_size // heads
        value = pattern_size or width
        if connected and (value != width or stored_size != projection_size):
            raise ShapeError(
                "A connected projection needs pattern_size = hidden_size, and stored and projected patterns of one size."
            )
        if bias_pattern and any(static[1:]):
            raise ShapeError(
                "A bias pattern is added to projected patterns: it needs those that are stored and projected not static."
            )
        self.width, self.value_width = width, value
        self.association = Association(heads, (width**-0.5 if width else 1.0) if beta is None else beta, steps, eps, learn_beta)
        shapes = self._shapes(state_size, stored_size, projection_size, pattern_size is not None)
        if bias and not all(static):
            projected = sum(heads * width for fixed in static[:2] if not fixed)
            shapes["in_proj_bias"] = (projected + heads * value,)  # with a part for values even where these are static
        if bias_pattern:
            shapes |= {"bias_k": (1, 1, heads * width), "bias_v": (1, 1, heads * value)}
        if normalize_affine:
            shapes |= {"p_norm_weight": (width,), "p_norm_bias": (width,)}
        for name in (
            *("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias"),
            *("bias_k", "bias_v", "p_norm_weight", "p_norm_bias"),
        ):
            self.register_parameter(name, nn.Parameter(torch.empty(shapes[name])) if name in shapes else None)
        self.out_proj = nn.Linear(heads * value, output_size or state_size or 0, bias=bias) if project_out else None
        self.reset_parameters()

    def _shapes(self, state: int | None, stored: int | None, projection: int | None, apart: bool) -> dict[str, tuple[int, ...]]:
        """Of the projections: one matrix where all inputs are of one size, else one each."""
        inner, outer = self.heads * self.width, self.heads * self.value_width
        behind = inner if self.connected and not self.static_stored else projection
        found = {
            "q_proj_weight": None if self.static_state else (inner, state),
            "k_proj_weight": None if self.static_stored else (inner, stored),
            "v_proj_weight": None if self.static_projection else (outer, behind),
        }
        shapes = {name: (rows[0], rows[1] or 0) for name, rows in found.items() if rows is not None}
        if apart or self.connected or not state == stored == projection:
            return dict(shapes)
        return {"in_proj_weight": (sum(rows for rows, _ in shapes.values()), state or 0)} if shapes else {}

    def reset_parameters(self) -> None:
        """Weights and bias patterns N(0, 0.02²), biases 0, norms 1 and 0."""
        for name, parameter in self.named_parameters():
            if name == "p_norm_weight":
                nn.init.ones_(parameter)
            elif name in ("in_proj_bias", "p_norm_bias", "out_proj.bias"):
                nn.init.zeros_(parameter)
            elif name != "association.log_beta":
                nn.init.normal_(parameter, std=INITIAL_STD)

    def project(self, stored: Tensor, state: Tensor, projection: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, N, d_y], [B, S, d_r], [B, N, d_p] -> states [B, H, S, K], keys [B, H, N', K], values [B, H, N', V].

        N' = N and one for a bias pattern and one for the zero pattern.
        """
        weights, biases = self._weights()
        q = self._split(state, weights[0], biases[0])
        k = self._split(stored, weights[1], biases[1])
        if self.connected and weights[1] is not None:
            projection = F.linear(projection, weights[1], biases[1])
            v = self._heads(projection) if weights[2] is None else self._split(projection, weights[2], biases[2])
        else:
            v = self._split(projection, weights[2], biases[2])
        if self.normalize:
            q, k = (F.layer_norm(t, t.shape[-1:], self.p_norm_weight, self.p_norm_bias, self.normalize_eps) for t in (q, k))
        if self.bias_k is not None and self.bias_v is not None:
            k, v = (
                torch.cat([t, self._heads(extra).to(t).expand(len(t), -1, -1, -1)], 2)
                for t, extra in ((k, self.bias_k), (v, self.bias_v))
            )
        if self.zero_pattern:
            k, v = (F.pad(t, (0, 0, 0, 1)) for t in (k, v))
        return q, k, v

    def few(self, states: int, updates: int) -> bool:
        """Whether so many states are associated faster by projecting them instead of the patterns."""
        plain = not (self.static_stored or self.static_projection or self.connected or self.normalize)
        own = self.bias_k is not None or self.zero_pattern
        return plain and not own and 2 * states * (updates + 1) < self.width + self.value_width

    def associate_few(self, stored: Tensor, state: Tensor, projection: Tensor, attend: Tensor | None, dropout: float) -> Tensor:
        """`project` and the association in one, without projected patterns: [B, H, S, V]."""
        weights, biases = self._weights()
        q, own = self._split(state, weights[0], biases[0]), self.association
        by_head = [None if part is None else part.unflatten(0, (self.heads, -1)) for part in (*weights[1:], *biases[1:])]
        key_weight, value_weight, key_bias, value_bias = by_head
        assert key_weight is not None  # `few` is asked before
        assert value_weight is not None
        return associate_few(
            q,
            stored,
            projection,
            key_weight,
            key_bias,
            value_weight,
            value_bias,
            beta=own.beta(q),
            steps=own.steps,
            eps=own.eps,
            attend=attend,
            dropout=dropout,
        )

    def leave(self, y: Tensor) -> Tensor:
        """Head outputs [B, H, S, V] -> [B, S, output_size], or [B, S, H V] without output projection."""
        y = y.transpose(1, 2).flatten(2)
        return y if self.out_proj is None else self.out_proj(y)

    def _weights(self) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """Weight and bias of q, k and v; None where there is none."""
        static = (self.static_state, self.static_stored, self.static_projection)
        rows = [
            0 if fixed else self.heads * size
            for fixed, size in zip(static, (self.width, self.width, self.value_width), strict=True)
        ]
        weights: list[Tensor | None] = [self.q_proj_weight, self.k_proj_weight, self.v_proj_weight]
        if self.in_proj_weight is not None:
            weights = [None if fixed else part for fixed, part in zip(static, self.in_proj_weight.split(rows), strict=True)]
        if self.in_proj_bias is None:
            return weights, [None, None, None]
        return weights, list(self.in_proj_bias.split([*rows[:2], self.heads * self.value_width]))

    def _split(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        if weight is None:
            return x.unsqueeze(1).expand(-1, self.heads, -1, -1)
        return self._heads(F.linear(x, weight, bias))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def get_extra_state(self) -> Tensor:
        """β (where it is fixed), steps and eps of each head, [3, H] float64."""
        own, heads = self.association, self.heads
        rows = (own.fixed_beta, own.steps, own.eps)
        return torch.stack([torch.tensor(row, dtype=torch.float64).expand(heads) for row in rows])

    def set_extra_state(self, state: Any) -> None:
        if not isinstance(state, Tensor) or state.shape != (3, self.heads):
            raise CheckpointError(f"β, steps and eps must be a tensor [3, {self.heads}]; received {state}.")
        beta, steps, eps = (tuple(row) if len(set(row)) > 1 else row[0] for row in state.tolist())
        steps = tuple(map(int, steps)) if isinstance(steps, tuple) else int(steps)
        learned = self.association.log_beta
        self.association = Association(self.heads, beta, steps, eps, False)
        self.association.log_beta = learned

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        state_dict.setdefault(prefix + _KNOBS, self.get_extra_state())  # type: ignore[attr-defined]
        super()._load_from_state_dict(state_dict, prefix, *rest)
