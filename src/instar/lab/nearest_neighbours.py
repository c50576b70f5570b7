"""The labels of the nearest examples."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from instar.errors import ShapeError
from instar.interfaces import InContextLearner
from instar.lab.icl import contexts


class NearestNeighbours(InContextLearner):
    r"""ŷ = Σ_i a_i y_i over the k nearest examples; a_i is 1/k, or proportional to 1/‖x - x_i‖ (all on exact hits, if there
    are any).

    Args:
        k: neighbours; all examples where there are fewer. weigh: uniform or distance.

    Ties are broken by the earlier example. Between points of {−1, 1}^D Euclidean order is that of Hamming distances, and of
    cosines. Without examples 0. Raises ShapeError. O(Q N D) a task. Source: Akyürek et al. 2023, section 4.
    """

    def __init__(self, *, k: int = 3, weigh: Literal["uniform", "distance"] = "uniform") -> None:
        if k < 1 or weigh not in ("uniform", "distance"):
            raise ShapeError(f"Expected k ≥ 1 and weigh uniform or distance; received {k} and {weigh!r}.")
        self.k, self.weigh = k, weigh

    def predict(self, xs: Tensor, ys: Tensor, x_query: Tensor) -> Tensor:
        """The (weighted) mean label of the nearest."""
        contexts.fitting(xs, ys, x_query)
        if xs.shape[1] == 0:
            return x_query.new_zeros(x_query.shape[:2])
        distances = torch.cdist(x_query, xs, compute_mode="donot_use_mm_for_euclid_dist")
        nearest, at = distances.sort(dim=-1, stable=True)
        nearest, at = nearest[..., : self.k], at[..., : self.k]
        labels = ys.unsqueeze(1).expand(-1, x_query.shape[1], -1).gather(-1, at)
        if self.weigh == "uniform":
            return labels.mean(-1)
        hit = (nearest == 0).to(xs.dtype)
        weights = torch.where(hit.any(-1, keepdim=True), hit, 1 / nearest.clamp_min(1e-30))
        return (labels * weights).sum(-1) / weights.sum(-1)
