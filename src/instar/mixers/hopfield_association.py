"""`Hopfield`: two sets associated, with or without projections; the base of the layers in `instar.mixers.hopfield_layers`.

Ramsauer et al. 2020, "Hopfield Networks is All You Need" (arXiv 2008.02217). Arguments, parameters and defaults are those of the
authors' layer (https://github.com/ml-jku/hopfield-layers), whose checkpoints load.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from instar.errors import ShapeError
from instar.kernels.hopfield import Steps, additive, associate, settle, weights
from instar.mixers.hopfield_core import HopfieldCore

Three = Tensor | tuple[Tensor, Tensor, Tensor]
Each = float | Tensor | None

_LIKELY = 8  # updates until states have settled, for the choice of the faster form


class Hopfield(nn.Module):
    r"""o = W_O concat_h softmax(β ξ Kᵀ) V, ξ = Q at first, updated `update_steps_max` times by ξ ← softmax(β ξ Kᵀ) K

    with Q, K, V the projections of state patterns R, stored patterns Y and pattern projections P, each under its layer norm.

    Args:
        input_size: of state patterns (and of the others, unless these have their own). hidden_size: K of ONE head;
            input_size / num_heads by default. output_size: input_size by default. pattern_size: V of one head, K by default.
        scaling: β, a number or one for each head [H]; 1/√K by default (1 where nothing is projected). learn_scaling: learn it.
        update_steps_max: n updates before the association (0 is attention), a number or one for each head; None or negative:
            until states settle. update_steps_eps: a state that an update moves by no more has settled; a number or one each.
        normalize_{stored_pattern, state_pattern, pattern_projection}[_affine, _eps]: the three layer norms.
        normalize_hopfield_space[_affine, _eps]: one more of each head's queries and keys.
        {stored_pattern, state_pattern, pattern_projection}_as_static: not projected, the same for all heads.
        pattern_projection_as_connected: V = (P W_K) W_V. stored_pattern_size, pattern_projection_size: of Y and P.
        association_activation: a function of torch, by name, on the output. dropout: of the weights of the association.
        input_bias: biases of projections. concat_bias_pattern: a learned pattern beside the stored ones. add_zero_association:
            one of zeros, for "nothing found". disable_out_projection: outputs are the heads', [B, S, H V].

    `Hopfield.pure(beta)` is the network itself, without parameters: start with it to retrieve raw patterns, which norms deform.
    Input: one tensor [B, N, d] for all three, or (Y, R, P); [N, B, d] without batch_first. Output: [B, S, output_size].
    stored_pattern_padding_mask: bool [B, N], True is ignored, at every update. association_mask: bool, True is ignored, or float,
    added to scores; [S, N] or [B H, S, N]. A state that sees no pattern reads zeros. Raises ShapeError, DivergedError.
    O((n + 1) S N K H) time. Differs from the authors' code: each state settles by itself and by its own movement, where theirs
    stops a head by the largest movement of weights in the batch (n updates that are all made are equal); β of a head scales that
    head; bias patterns are added; static inputs of several heads keep samples apart; β, n and eps are in the state dict.
    """

    norm_stored_pattern: nn.LayerNorm | None
    norm_state_pattern: nn.LayerNorm | None
    norm_pattern_projection: nn.LayerNorm | None

    def __init__(
        self,
        input_size: int | None = None,
        hidden_size: int | None = None,
        output_size: int | None = None,
        pattern_size: int | None = None,
        num_heads: int = 1,
        scaling: Each = None,
        update_steps_max: int | Tensor | None = 0,
        update_steps_eps: float | Tensor = 1e-4,
        normalize_stored_pattern: bool = True,
        normalize_stored_pattern_affine: bool = True,
        normalize_stored_pattern_eps: float = 1e-5,
        normalize_state_pattern: bool = True,
        normalize_state_pattern_affine: bool = True,
        normalize_state_pattern_eps: float = 1e-5,
        normalize_pattern_projection: bool = True,
        normalize_pattern_projection_affine: bool = True,
        normalize_pattern_projection_eps: float = 1e-5,
        normalize_hopfield_space: bool = False,
        normalize_hopfield_space_affine: bool = False,
        normalize_hopfield_space_eps: float = 1e-5,
        stored_pattern_as_static: bool = False,
        state_pattern_as_static: bool = False,
        pattern_projection_as_static: bool = False,
        pattern_projection_as_connected: bool = False,
        stored_pattern_size: int | None = None,
        pattern_projection_size: int | None = None,
        batch_first: bool = True,
        association_activation: str | None = None,
        dropout: float = 0.0,
        input_bias: bool = True,
        concat_bias_pattern: bool = False,
        add_zero_association: bool = False,
        disable_out_projection: bool = False,
        learn_scaling: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise ShapeError(f"dropout must be at least 0 and below 1; received {dropout}.")
        self.input_size, self.batch_first, self.dropout = input_size, batch_first, dropout
        self.stored_pattern_size = input_size if stored_pattern_size is None else stored_pattern_size
        self.pattern_projection_size = input_size if pattern_projection_size is None else pattern_projection_size
        self.association_activation = _function(association_activation)
        self.association_core = HopfieldCore(
            input_size,
            self.stored_pattern_size,
            self.pattern_projection_size,
            hidden_size,
            pattern_size,
            output_size,
            num_heads,
            beta=None if scaling is None else _each(scaling),
            steps=_steps(update_steps_max),
            eps=_each(update_steps_eps),
            learn_beta=learn_scaling,
            static=(state_pattern_as_static, stored_pattern_as_static, pattern_projection_as_static),
            connected=pattern_projection_as_connected,
            normalize=normalize_hopfield_space,
            normalize_affine=normalize_hopfield_space and normalize_hopfield_space_affine,
            normalize_eps=normalize_hopfield_space_eps,
            bias=input_bias,
            bias_pattern=concat_bias_pattern,
            zero_pattern=add_zero_association,
            project_out=not disable_out_projection,
        )
        for name, size, wanted, affine, eps in (
            (
                "stored_pattern",
                self.stored_pattern_size,
                normalize_stored_pattern,
                normalize_stored_pattern_affine,
                normalize_stored_pattern_eps,
            ),
            ("state_pattern", input_size, normalize_state_pattern, normalize_state_pattern_affine, normalize_state_pattern_eps),
            (
                "pattern_projection",
                self.pattern_projection_size,
                normalize_pattern_projection,
                normalize_pattern_projection_affine,
                normalize_pattern_projection_eps,
            ),
        ):
            if wanted and size is None:
                raise ShapeError(f"normalize_{name} needs input_size, the size of what is normalised; or set it to False.")
            self.register_module(f"norm_{name}", nn.LayerNorm(size, eps, affine) if wanted and size else None)

    @classmethod
    def pure(cls, beta: float = 1.0, *, num_heads: int = 1, update_steps_max: int | None = None, **more: Any) -> Hopfield:
        """The network alone: o = softmax(β ξ Yᵀ) P after the updates of ξ; no parameters, patterns of any size."""
        given: dict[str, Any] = {"scaling": beta, "num_heads": num_heads, "update_steps_max": update_steps_max}
        for name in ("stored_pattern", "state_pattern", "pattern_projection"):
            given |= {f"normalize_{name}": False, f"{name}_as_static": True}
        return cls(**given, disable_out_projection=True, **more)

    def forward(
        self, input: Three, stored_pattern_padding_mask: Tensor | None = None, association_mask: Tensor | None = None
    ) -> Tensor:
        """What the states read; see the class."""
        stored, state, projection, attend = self._patterns(input, stored_pattern_padding_mask, association_mask)
        core, own, dropout = self.association_core, self.association_core.association, self.dropout if self.training else 0.0
        most = own.steps if isinstance(own.steps, int) else min(own.steps) if min(own.steps) < 0 else max(own.steps)
        if core.few(state.shape[1], _LIKELY if most < 0 else most):
            y = core.associate_few(stored, state, projection, attend, dropout)
        else:
            q, k, v, attend = self._project(stored, state, projection, attend)
            y = associate(q, k, v, beta=own.beta(q), steps=own.steps, eps=own.eps, attend=attend, dropout=dropout)
        y = self.association_core.leave(y)
        if self.association_activation is not None:
            y = self.association_activation(y)
        return y if self.batch_first else y.transpose(0, 1)

    @torch.no_grad()
    def get_association_matrix(
        self, input: Three, stored_pattern_padding_mask: Tensor | None = None, association_mask: Tensor | None = None
    ) -> Tensor:
        """The weights [B, H, S, N] with which states read after their updates."""
        q, k, _, attend = self._project(*self._patterns(input, stored_pattern_padding_mask, association_mask))
        own = self.association_core.association
        state, _ = settle(q, k, beta=own.beta(q), steps=own.steps, eps=own.eps, attend=attend)
        return weights(state, k, beta=own.beta(q), attend=attend)

    @torch.no_grad()
    def get_projected_pattern_matrix(self, input: Three) -> Tensor:
        """The values [B, H, N, V]."""
        return self._project(*self._patterns(input, None, None))[2]

    def _patterns(
        self, input: Three, padding: Tensor | None, masked: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Stored, state and projected patterns after their norms, batch first, and what the states see."""
        parts = input if isinstance(input, tuple) else (input, input, input)
        stored, state, projection = parts if self.batch_first else tuple(part.transpose(0, 1) for part in parts)
        (B, N, _), S = stored.shape, state.shape[1]
        if projection.shape[:2] != (B, N) or state.shape[0] != B:
            raise ShapeError(
                "Stored patterns and their projections must be as many, for each sample of the states; received "
                f"{list(stored.shape)}, {list(projection.shape)} and {list(state.shape)}."
            )
        if padding is not None:
            if padding.shape != (B, N):
                raise ShapeError(f"stored_pattern_padding_mask must be bool [{B}, {N}]; received {list(padding.shape)}.")
            padding = padding.to(torch.bool)
            stored, projection = (part.masked_fill(padding.unsqueeze(-1), 0.0) for part in (stored, projection))
        if self.norm_stored_pattern is not None:
            stored = self.norm_stored_pattern(stored)
        if self.norm_state_pattern is not None:
            state = self.norm_state_pattern(state)
        if self.norm_pattern_projection is not None:
            projection = self.norm_pattern_projection(projection)
        attend = None if padding is None else ~padding[:, None, None]
        if masked is not None:
            attend = _join(attend, _association_mask(masked, B, self.association_core.heads, S, N), state)
        return stored, state, projection, attend

    def _project(
        self, stored: Tensor, state: Tensor, projection: Tensor, attend: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """States, keys and values of each head, and what the states see, with the layer's own patterns, which all see."""
        q, k, v = self.association_core.project(stored, state, projection)
        if q.shape[-1] != k.shape[-1]:
            raise ShapeError(
                f"States of size {q.shape[-1]} meet stored patterns of size {k.shape[-1]}; a static input must be as wide."
            )
        if attend is not None and k.shape[2] > stored.shape[1]:
            own = k.shape[2] - stored.shape[1]
            attend = nn.functional.pad(attend, (0, own), value=1.0 if attend.dtype == torch.bool else 0.0)
        return q, k, v, attend


def _function(name: str | None) -> Callable[[Tensor], Tensor] | None:
    found = None if name is None else getattr(torch, name, None)
    if name is not None and not callable(found):
        raise ShapeError(f"association_activation must name a function of torch, such as 'tanh'; received {name!r}.")
    return found


def _each(value: float | Tensor) -> float | tuple[float, ...]:
    return tuple(map(float, value.tolist())) if isinstance(value, Tensor) and value.dim() else float(value)


def _steps(value: int | Tensor | None) -> Steps:
    """The authors' None and negative numbers as −1."""
    if isinstance(value, Tensor) and value.dim():
        return tuple(max(-1, int(n)) for n in value.tolist())
    return -1 if value is None else max(-1, int(value))


def _association_mask(masked: Tensor, B: int, H: int, S: int, N: int) -> Tensor:
    """What is True where a state sees a pattern, or added, [1 or B, 1 or H, S, N]."""
    if masked.shape not in ((S, N), (B * H, S, N)):
        raise ShapeError(f"association_mask must be [{S}, {N}] or [{B * H}, {S}, {N}]; received {list(masked.shape)}.")
    masked = masked.view(1, 1, S, N) if masked.dim() == 2 else masked.view(B, H, S, N)
    return masked if masked.is_floating_point() else ~masked.to(torch.bool)


def _join(attend: Tensor | None, other: Tensor, like: Tensor) -> Tensor:
    if attend is None or other.dtype == torch.bool:
        return other.to(like.dtype) if other.is_floating_point() else other if attend is None else attend & other
    return additive(attend, like) + other.to(like.dtype)
