"""Regression to the old vectors beside a classifier: the simplest way to train a compatible embedding."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.compat.embedding import Embedding, Objective
from instar.errors import ShapeError
from instar.interfaces import Pairs


class Regression(Embedding):
    """L = CE(W e, y) + weight · mean ‖h / √O − φ_old‖² ("l2"), or + weight · (1 − mean ⟨ê, φ_old⟩) ("cosine").

    h is what the backbone gives, e = h / ‖h‖ the new embedding, ê its first O coordinates as a unit vector. Coordinates of h
    start near 1, those of a unit vector are near 1/√O: without the root the steps of Adam are larger than what is to be learnt.

    Args:
        loss: "l2" or "cosine", of the first O coordinates. weight: of that term.
        class_weight: of CE; 0 leaves regression alone, as in openBCT. Without labels there is no CE.
        k: extra dimensions beyond the old width, which only CE sees. hidden, layers: of the backbone.

    Shapes: x [N, input_dim] -> [N, O + k]. Raises ShapeError; `fit` raises DataError, DivergedError.
    A pair costs 6 (I · hidden + hidden · (O + k)) FLOPs an epoch, and 6 C (O + k) for C classes.
    The baseline of the BCT paper (arXiv 2003.11942), where it is weak.
    """

    def __init__(
        self,
        new_dim: int,
        old_dim: int,
        *,
        input_dim: int | None = None,
        loss: Literal["l2", "cosine"] = "l2",
        weight: float = 10.0,
        class_weight: float = 1.0,
        k: int = 0,
        hidden: int = 512,
        layers: int = 1,
    ) -> None:
        super().__init__(new_dim, old_dim, input_dim=input_dim, k=k, hidden=hidden, layers=layers)
        if loss not in ("l2", "cosine") or not weight > 0 or not class_weight >= 0:
            raise ShapeError(
                "Regression expects loss 'l2' or 'cosine', a weight above 0 and a class_weight of 0 or more; "
                f"received {loss!r}, {weight}, {class_weight}."
            )
        self.loss, self.weight, self.class_weight = loss, weight, class_weight

    def objective(self, pairs: Pairs, seed: int) -> Objective:
        return Distance(self, pairs.old, pairs.labels if self.class_weight > 0 else None)


class Distance(Objective):
    """Distance to the old vectors, and the cross entropy where classes are known."""

    def __init__(self, head: Regression, old: Tensor, labels: Tensor | None) -> None:
        super().__init__()
        self.kind, self.weight, self.class_weight = head.loss, head.weight, head.class_weight
        self.old, self.labels = old, labels
        self.classifier = None if labels is None else nn.Linear(head.full_dim, int(labels.max()) + 1, bias=False)

    def forward(self, h: Tensor, places: Tensor) -> Tensor:
        old = self.old[places]
        first = h[:, : old.shape[1]]
        if self.kind == "l2":
            away = (first / old.shape[1] ** 0.5 - old).square().sum(1)
        else:
            away = 1 - (F.normalize(first, dim=1) * old).sum(1)
        found = self.weight * away.mean()
        if self.classifier is None or self.labels is None:
            return found
        logits: Tensor = self.classifier(F.normalize(h, dim=1))
        return torch.add(found, F.cross_entropy(logits, self.labels[places]), alpha=self.class_weight)
