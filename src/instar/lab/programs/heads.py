"""Attention whose pattern is a predicate: of a value of one variable, which value of another one is looked for.

B batch · N tokens · H heads · V variables · k values of a variable
categorical stream [B, N, V, k] (one-hot), numerical stream [B, N, U]
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from instar.lab.programs.sampling import How, sample

MASKED = -1e30
HARD = 0.01
"""What stands for 1e−20 and 1e−10 where samples are one-hot and scores exactly 0, whose gradients would overflow."""


def distances(length: int) -> Tensor:
    """b(j − i) [length, length], row i the query: what makes the nearest of several matches win.

    b(0) = −2: itself last. b(+t) = −(t − 1) / (n − 2) ahead, b(−t) = −(t − 1) / (n − 1) behind: of two matches the nearer one
    wins, and of two at the same distance the earlier.
    """
    place = torch.arange(length, dtype=torch.float64)
    apart = place - place[:, None]
    steps = apart.abs() - 1
    bias = torch.where(apart > 0, -steps / max(1, length - 2), -steps / max(1, length - 1))
    return bias.masked_fill(apart == 0, -2.0)


def gate(logits: Tensor, variables: Tensor, tau: float, how: How) -> Tensor:
    """Read one variable for each gate: logits [H, V], variables [B, N, V, k] -> [B, H, N, k]."""
    return torch.einsum("bnvk,hv->bhnk", variables, sample(logits, tau, how).to(variables.dtype))


class PredicateHeads(nn.Module):
    """What both kinds of head share: gates that choose what is read, and a predicate Ψ that says which key a query looks for.

    Args:
        heads: H. variables: V, that queries and keys may read. values: variables that it may aggregate. k: their values.

    Gates begin normal / √(how many they choose among), predicates normal / √k.
    """

    def __init__(self, heads: int, variables: int, values: int, k: int) -> None:
        super().__init__()
        self.k = k
        self.query = nn.Parameter(torch.randn(heads, variables) / variables**0.5)
        self.key = nn.Parameter(torch.randn(heads, variables) / variables**0.5)
        self.value = nn.Parameter(torch.randn(heads, values) / values**0.5)
        self.predicate = nn.Parameter(torch.randn(heads, k, k) / k**0.5)

    def scores(self, variables: Tensor, tau: float, how: How) -> Tensor:
        """S_ij = ⟨Pᵀ q_i, k_j⟩ [B, H, N, N], in [0, 1]; P is Ψ with one key chosen for each query."""
        query = gate(self.query, variables, tau, how)
        key = gate(self.key, variables, tau, how)
        chosen = sample(self.predicate, tau, how).to(variables.dtype)
        return (query @ chosen) @ key.mT


class CategoricalHeads(PredicateHeads):
    """A head puts out the value of its variable at the nearest place that matches; at the first place where none does.

    Args:
        length: n of b(j − i), the longest sequence. All others: as of `PredicateHeads`.
    """

    bias: Tensor

    def __init__(self, heads: int, variables: int, k: int, length: int) -> None:
        super().__init__(heads, variables, variables, k)
        self.register_buffer("bias", distances(length), persistent=False)

    def forward(self, variables: Tensor, seen: Tensor, tau: float, how: How) -> Tensor:
        """Variables [B, N, V, k], seen bool [B, N, N] (what each query may look at) -> [B, N, H, k].

        logits = (log(S + 1e−20) + b(j − i)) / √k after the first place has been given relu(1 − m_i), m_i = s_i / (s_i + 1e−10),
        s_i = Σ_j S_ij over what is seen; with straight-through samples both small numbers are HARD.
        """
        score, seen, N = self.scores(variables, tau, how), seen[:, None], variables.shape[1]
        total = score.masked_fill(~seen, 0.0).sum(-1, keepdim=True)
        floor, least = (HARD, HARD) if how == "gumbel_hard" else (1e-20, 1e-10)
        none = torch.relu(1 - total / (total + least))
        first = torch.arange(N, device=score.device) == 0
        logits = (score + none * first + floor).log() + self.bias[:N, :N].to(score.dtype)
        attention = sample(logits.masked_fill(~seen, MASKED) / self.k**0.5, tau, how)
        return (attention @ gate(self.value, variables, tau, how)).transpose(1, 2)


class NumericalHeads(PredicateHeads):
    """A head puts out the sum of its numerical variable over the places that match: a count where that is `ones`, or 0."""

    def forward(self, variables: Tensor, numbers: Tensor, seen: Tensor, tau: float, how: How) -> Tensor:
        """Variables [B, N, V, k], numbers [B, N, U], seen bool [B, N, N] -> Σ_j S_ij v_j [B, N, H]. There is no softmax."""
        score = self.scores(variables, tau, how).masked_fill(~seen[:, None], 0.0)
        value = torch.einsum("bnu,hu->bhn", numbers, sample(self.value, tau, how).to(numbers.dtype))
        return torch.einsum("bhij,bhj->bih", score, value)
