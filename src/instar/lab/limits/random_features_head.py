"""Attention by positive random features: the other way to a gradient that is linear in the length."""

from __future__ import annotations

import torch
from torch import Tensor

from instar.adapters.limits import gradients
from instar.bench.seeds import stream
from instar.errors import ShapeError
from instar.interfaces import AttentionHead
from instar.kernels.random_features import orthogonal_gaussian


class RandomFeaturesHead(AttentionHead):
    r"""f ≈ D⁻¹ φ(Q) φ(K)ᵀ with φ(x)_r = m^(−1/2) exp(⟨w_r, x⟩ − ‖x‖²/2), E φ(q)·φ(k) = exp(q·k): FAVOR+, with torch's gradient.

    Args: features: m. seed: of w, drawn anew for no call: the same inputs have the same numbers.

    Exponents are measured from the largest of a query and of all keys, which a softmax does not feel. O((L + M) m (D + E)).
    Raises ShapeError. Source: Choromanski et al. 2020 (arXiv 2009.14794).
    """

    def __init__(self, *, features: int = 84, seed: int = 0) -> None:
        if features < 1:
            raise ShapeError(f"There is at least one feature; received {features}.")
        self.features, self.seed = features, seed

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """An estimate of softmax attention."""
        gradients.require(q, k, v, False)
        w = orthogonal_gaussian(self.features, q.shape[-1], stream(self.seed, "random_features")).to(q)
        asked, given = (x @ w.mT - x.square().sum(-1, keepdim=True) / 2 for x in (q, k))
        asked = (asked - asked.detach().amax(-1, keepdim=True)).exp()
        given = (given - given.detach().amax((-2, -1), keepdim=True)).exp()
        above = asked @ (given.mT @ torch.cat([v, torch.ones_like(v[..., :1])], -1))
        return above[..., :-1] / above[..., -1:]
