"""Learned states associate with the instances of a bag, in an associative memory with an energy."""

from __future__ import annotations

import torch
from torch import Tensor

from instar.errors import ShapeError
from instar.interfaces import Pooling
from instar.kernels.hopfield import settle_reference, weights
from instar.mixers import hopfield_layers
from instar.pooling import bag


class HopfieldPooling(Pooling):
    r"""z = W_O concat_h softmax(β ξ Kᵀ) V for each of S learned states, ξ ← softmax(β ξ Kᵀ) K before that, `steps` times.

    K = Y W_K, V = Y W_V, ξ = R W_Q under layer norms, Y the instances, R the learned states.

    Args:
        heads: H. head_width: K of one head. beta: β; 0 is 1/√K. learn_beta: β of each head learns. steps: n ≥ 0, or −1 until
            states settle. quantity: S, states that read the bag; E = S D. dropout: of the weights of the association.

    Shapes: [B, N, D] -> [B, S D]. An empty bag gives the output's bias. O(S H (n + 1) N D) time: states are projected, not
    instances, where that is less. Raises ShapeError, DivergedError. Source: Ramsauer et al. 2020 (arXiv 2008.02217); the layer
    with all arguments of the authors' own, whose checkpoints load, is `instar.mixers.hopfield_layers.HopfieldPooling`.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int = 8,
        head_width: int = 32,
        beta: float = 0.0,
        learn_beta: bool = False,
        steps: int = 0,
        quantity: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        bag.positive(width=width, heads=heads, head_width=head_width, quantity=quantity)
        if steps < -1:
            raise ShapeError(f"steps must be 0 or more, or -1 for updates until states settle; received {steps}.")
        self.width, self.out_width = width, quantity * width
        self.heads, self.head_width, self.beta, self.learn_beta = heads, head_width, beta, learn_beta
        self.steps, self.quantity, self.dropout = steps, quantity, dropout
        self.layer = hopfield_layers.HopfieldPooling(
            width,
            quantity=quantity,
            hidden_size=head_width,
            num_heads=heads,
            scaling=beta or None,
            learn_scaling=learn_beta,
            update_steps_max=steps,
            dropout=dropout,
        )

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """[B, N, D] -> [B, S D]"""
        x, known = bag.real(x, mask, self.width)
        return self.layer(x, None if mask is None else ~known)

    def weights(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Of the association after the updates, [B, H, S, N], zeros for padding: which instances decided."""
        x, known = bag.real(x, mask, self.width)
        return self.layer.get_association_matrix(x, None if mask is None else ~known)

    def reference(self, instances: Tensor) -> Tensor:
        """Every weight written out (without dropout)."""
        outer, core = self.layer.hopfield, self.layer.hopfield.association_core
        norms = (outer.norm_stored_pattern, outer.norm_state_pattern, outer.norm_pattern_projection)
        of = (instances, self.layer.pooling_weights[0], instances)
        stored, states, projection = (part if norm is None else norm(part) for norm, part in zip(norms, of, strict=True))
        q, k, v = core.project(stored[None], states[None], projection[None])
        beta = core.association.beta(q)
        states, _ = settle_reference(q, k, beta=beta, steps=self.steps, eps=core.association.eps)
        read = weights(states, k, beta=beta).to(v.dtype) @ v
        return torch.flatten(core.leave(read))
