"""A mean of the instances whose weights a small network gives."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from instar.interfaces import Pooling
from instar.pooling import bag


class AttentionPooling(Pooling):
    r"""z = Σ_n a_n h_n,  a = softmax_n(wᵀ tanh(V h_n)), or with a gate softmax_n(wᵀ (tanh(V h_n) ⊙ σ(U h_n))).

    Args: hidden: L, rows of V and U. gated: the second form, for which tanh is nearly linear around 0.
    Shapes: [B, N, D] -> [B, D]; zeros for an empty bag. `weights` gives a [B, N]: which instances decided. O(N D L) time.
    Raises ShapeError. Source: Ilse, Tomczak, Welling 2018 (arXiv 1802.04712), equations 8 and 9; V, U and w have biases, as in
    the authors' code.
    """

    def __init__(self, width: int, *, hidden: int = 64, gated: bool = False) -> None:
        super().__init__()
        bag.positive(width=width, hidden=hidden)
        self.width = self.out_width = width
        self.hidden, self.gated = hidden, gated
        self.look = nn.Linear(width, hidden)
        self.gate = nn.Linear(width, hidden) if gated else None
        self.score = nn.Linear(hidden, 1)

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """[B, N, D] -> [B, D]"""
        x, known = bag.real(x, mask, self.width)
        return (self._weights(x, known).unsqueeze(1) @ x).squeeze(1)

    def weights(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """a [B, N], zeros for padding."""
        return self._weights(*bag.real(x, mask, self.width))

    def reference(self, instances: Tensor) -> Tensor:
        """As it is written."""
        looks = torch.tanh(instances @ self.look.weight.T + self.look.bias)
        if self.gate is not None:
            looks = looks * torch.sigmoid(instances @ self.gate.weight.T + self.gate.bias)
        return torch.softmax(looks @ self.score.weight[0] + self.score.bias, 0) @ instances

    def _weights(self, x: Tensor, known: Tensor) -> Tensor:
        looks = torch.tanh(self.look(x))
        if self.gate is not None:
            looks = looks * torch.sigmoid(self.gate(x))
        empty = ~known.any(1, keepdim=True)  # a softmax over nothing is NaN: over all, and then nothing
        scores = self.score(looks).squeeze(-1).masked_fill(~(known | empty), -torch.inf)
        return torch.softmax(scores, 1).masked_fill(empty, 0.0)
