"""Keeping the tokens of a sequence that a small network finds informative, in their order.

Wang, Zhu, Wang, Yu, Liu, Omar, Hamid 2023, "Selective Structured State-Spaces for Long-Form Video Understanding" (arXiv
2303.14526); the network after DynamicViT, Rao et al. 2021 (arXiv 2106.02034).
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.errors import ShapeError
from instar.mixers.drawn_seed import drawn_seed


class Selection(NamedTuple):
    """What is kept of sequences [S, L, D]; K is the most that a sequence of L tokens keeps."""

    tokens: Tensor
    """[S, K, D], in their order."""
    places: Tensor
    """int64 [S, K], their places; all different."""
    kept: Tensor
    """bool [S, K], True before False: a shorter sequence keeps fewer than K, and what follows means nothing."""
    probability: Tensor
    """[S, L], of being kept, before any noise."""


Rule = Literal["random", "stride"]


class SelectiveTokens(nn.Module):
    r"""π_i = W_3 ReLU(W_2 [z_i^{left}; mean_j z_j^{right}]), z = ReLU(W_1 LN(f)), p = softmax(π / τ)_keep; the k largest stay.

    f are features of the tokens, as wide. In training log p is perturbed by Gumbel noise before the k largest are taken. A kept
    token is multiplied by 1 + p - stopgrad(p): its value stays, and its gradient reaches p as if it were weighted by p.

    Args:
        width: D, at least 4. keep: the share of tokens that stays, in (0, 1]: of n tokens ⌈keep n⌉. temperature: τ.

    Raises ShapeError. O(L D²) time.
    """

    def __init__(self, width: int, *, keep: float = 0.5, temperature: float = 1.0) -> None:
        super().__init__()
        if width < 4 or not 0 < keep <= 1 or not 0 < temperature < math.inf:
            raise ShapeError(
                "width must be at least 4, keep in (0, 1] and temperature positive; "
                f"received width={width}, keep={keep}, temperature={temperature}."
            )
        self.keep, self.temperature = keep, temperature
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, 2 * (width // 2))
        self.hidden = nn.Linear(2 * (width // 2), width // 2)
        self.logits = nn.Linear(width // 2, 2)

    def forward(self, x: Tensor, features: Tensor, real: Tensor) -> Selection:
        """Sequences x [S, L, D], features [S, L, D], and which tokens are real, bool [S, L], L ≥ 1; padding is never kept."""
        log_p = self.score(features, real)
        index, kept = _largest(self.perturbed(log_p), real, self.keep)
        p = log_p.exp()
        weight = (1 + (p - p.detach())).gather(1, index).unsqueeze(-1)
        return Selection(_at(x, index) * weight, index, kept, p)

    def score(self, features: Tensor, real: Tensor) -> Tensor:
        """log p [S, L]."""
        local, overall = F.relu(self.inner(self.norm(features))).chunk(2, dim=-1)
        overall = overall.masked_fill(~real.unsqueeze(-1), 0.0).sum(1, keepdim=True) / real.sum(1).clamp(min=1).view(-1, 1, 1)
        both = torch.cat([local, overall.expand_as(local)], dim=-1)
        return F.log_softmax(self.logits(F.relu(self.hidden(both))) / self.temperature, dim=-1)[..., 1]

    def perturbed(self, log_p: Tensor) -> Tensor:
        """With Gumbel noise of torch's generator in training, as it is otherwise."""
        if not self.training:
            return log_p
        noise = torch.rand_like(log_p, dtype=torch.float32).clamp(min=1e-20).to(log_p.dtype)
        return log_p - torch.log((-torch.log(noise)).clamp(min=1e-20))

    def count(self, n: int) -> int:
        """How many of n tokens stay."""
        return count(self.keep, n)


class FixedTokens(nn.Module):
    """As many tokens, chosen by no network: what a choice has to beat.

    Args:
        keep: as of `SelectiveTokens`. rule: "random", drawn anew for each row at each training pass; in eval mode the same places
            of all rows, drawn when the module is made (those of several layers differ); "stride", equally spaced.

    Raises ShapeError. O(L) time.
    """

    salt: Tensor

    def __init__(self, *, keep: float = 0.5, rule: Rule = "random") -> None:
        super().__init__()
        if not 0 < keep <= 1:
            raise ShapeError(f"keep must be in (0, 1]; received {keep}.")
        self.keep, self.rule = keep, rule
        self.register_buffer("salt", torch.tensor(drawn_seed(None)))

    def forward(self, x: Tensor, features: Tensor, real: Tensor) -> Selection:
        """As of `SelectiveTokens`; features are not looked at."""
        place = (real.cumsum(1) - 1).clamp(min=0)
        index, kept = _largest(self.scores(place, real.sum(1, keepdim=True)), real, self.keep)
        return Selection(_at(x, index), index, kept, torch.full_like(place, self.keep, dtype=x.dtype))

    def scores(self, place: Tensor, count: Tensor) -> Tensor:
        """Of the `place`-th of `count` real tokens: the largest ones stay."""
        if self.rule == "stride":
            wanted = torch.ceil(self.keep * count.double() - 1e-9).long()
            return ((place + 1) * wanted // count.clamp(min=1) > place * wanted // count.clamp(min=1)).float()
        if self.training:
            return torch.rand(place.shape, device=place.device)
        mixed = (place + 1) * 2654435761 + self.salt  # a hash: a generator of its own would be no part of a graph
        for factor, shift in ((2654435761, 15), (2246822519, 13)):
            mixed = mixed * factor % 2**32
            mixed = mixed ^ (mixed >> shift)
        return mixed.double()

    def count(self, n: int) -> int:
        """How many of n tokens stay."""
        return count(self.keep, n)


def count(keep: float, n: int) -> int:
    """⌈keep n⌉, but for rounding."""
    return math.ceil(keep * n - 1e-9)


def _largest(scores: Tensor, real: Tensor, keep: float) -> tuple[Tensor, Tensor]:
    """Places [S, K] of the largest scores of each row's real tokens, in their order, and which of the K it has."""
    rank = scores.masked_fill(~real, -torch.inf).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    stays = rank < torch.ceil(keep * real.sum(1, keepdim=True).double() - 1e-9)
    index = stays.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, : count(keep, scores.shape[1])]
    return index, stays.gather(1, index)


def _at(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[2]))
