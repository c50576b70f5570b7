"""Regression-alleviating compatible training (RACT): contrast with old vectors and with new ones at once.

Zhang, Ge, Shen, Li, Yuan, Xu, Wang, Shan, "Hot-Refresh Model Upgrades with Regression-Alleviating Compatible Training in
Image Retrieval", ICLR 2022 (arXiv 2201.09724).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.compat import labelled
from instar.compat.embedding import Embedding, Objective
from instar.errors import ShapeError
from instar.interfaces import Pairs


class RACT(Embedding):
    """L = CE(W e, y) + weight · mean_i −log [p_i / (p_i + Σ_j exp(⟨ê_i, o_j⟩/τ) + exp(⟨ê_i, ê_j⟩/τ))],  p_i = exp(⟨ê_i, o_i⟩/τ).

    o are old vectors, e the new embedding, ê its first O coordinates as a unit vector; j runs over items of the batch that are of
    another class (without labels: over all others, and there is no CE).

    Args:
        temperature: τ. weight: of the contrast. negatives: only so many of the hardest j of each kind; 0 takes all.
        k: extra dimensions beyond the old width, which only CE sees; the paper has none. hidden, layers: of the backbone.

    Shapes: x [N, input_dim] -> [N, O + k]. Raises ShapeError; `fit` raises DataError, DivergedError.
    A pair costs 6 (I · hidden + hidden · (O + k) + 2 B · O) FLOPs an epoch in batches of B, and 6 C (O + k) for C classes.
    Differs from the paper: trained on cached features, a plain classifier in place of ArcFace; see the card.
    """

    def __init__(
        self,
        new_dim: int,
        old_dim: int,
        *,
        input_dim: int | None = None,
        temperature: float = 0.01,
        weight: float = 1.0,
        negatives: int = 0,
        k: int = 0,
        hidden: int = 512,
        layers: int = 1,
    ) -> None:
        super().__init__(new_dim, old_dim, input_dim=input_dim, k=k, hidden=hidden, layers=layers)
        if not temperature > 0 or not weight > 0 or negatives < 0:
            raise ShapeError(
                "RACT expects a temperature and a weight above 0, and 0 or more negatives; "
                f"received {temperature}, {weight}, {negatives}."
            )
        self.temperature, self.weight, self.negatives = temperature, weight, negatives

    def objective(self, pairs: Pairs, seed: int) -> Objective:
        if pairs.labels is not None:
            labelled.require(pairs.labels)
        return Contrast(self, pairs.old, pairs.labels)


class Contrast(Objective):
    """The contrast with old and new vectors, and the cross entropy where classes are known."""

    def __init__(self, head: RACT, old: Tensor, labels: Tensor | None) -> None:
        super().__init__()
        self.temperature, self.weight, self.negatives = head.temperature, head.weight, head.negatives
        self.old, self.labels = old, labels
        self.classifier = None if labels is None else nn.Linear(head.full_dim, int(labels.max()) + 1, bias=False)

    def forward(self, h: Tensor, places: Tensor) -> Tensor:
        old = self.old[places]
        new = F.normalize(h[:, : old.shape[1]], dim=1)
        y = places if self.labels is None else self.labels[places]
        same = y[:, None] == y[None]
        found = self.weight * contrast(new, old, same, self.temperature, self.negatives)
        if self.classifier is None or self.labels is None:
            return found
        logits: Tensor = self.classifier(F.normalize(h, dim=1))
        return found + F.cross_entropy(logits, y)


def contrast(new: Tensor, old: Tensor, same: Tensor, temperature: float, negatives: int = 0) -> Tensor:
    """Unit vectors [B, O] twice; same [B, B], which are of one class. The mean over i of the loss above, without its weight."""
    to_old, to_new = new @ old.T, new @ new.T
    kinds = [scores.masked_fill(same, -torch.inf) for scores in (to_old, to_new)]
    if negatives:
        kinds = [scores.topk(min(negatives, len(new)), 1).values for scores in kinds]
    logits = torch.cat([to_old.diagonal()[:, None], *kinds], 1) / temperature
    return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.int64))
