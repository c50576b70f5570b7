"""Backward-compatible training: the new embedding must also satisfy the old model's classifier.

Shen, Xiong, Xia, Soatto, "Towards Backward-Compatible Representation Learning", CVPR 2020 (arXiv 2003.11942).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.compat import labelled, pseudo_classes
from instar.compat.embedding import Embedding, Objective
from instar.errors import ShapeError
from instar.interfaces import Pairs


class BCT(Embedding):
    """L = CE(W e, y) + α · CE(W_old ê, y): e the new embedding, ê its first O coordinates as a unit vector.

    W_old is frozen: row c is the mean old vector of class c (`pseudo_classes.means`), over all classes of the pairs.

    Args:
        k: extra dimensions beyond the old width, which the second term does not see; the paper has none.
        alpha: α; the value of the BT² authors' code.
        label_smoothing: of both terms.
        clusters: how many classes are made where the pairs have no labels: clusters of the new vectors, at least 10 pairs each on
            average. Not in the paper, which needs labels.
        hidden, layers: of the backbone.

    `old_classifier` [C, O], where it is assigned before `fit`, replaces rows of W_old: the old model's own classifier, as in the
    paper; rows that hold NaN (classes that the old model never saw) stay means.
    Shapes: x [N, input_dim] -> [N, O + k]. Raises ShapeError; `fit` raises DataError, DivergedError.
    A pair costs 6 (I · hidden + hidden · (O + k) + C (2 O + k)) FLOPs an epoch.
    Differs from the paper: trained on cached features; see the card.
    """

    old_classifier: Tensor | None

    def __init__(
        self,
        new_dim: int,
        old_dim: int,
        *,
        input_dim: int | None = None,
        k: int = 0,
        alpha: float = 10.0,
        label_smoothing: float = 0.1,
        clusters: int = 200,
        hidden: int = 512,
        layers: int = 1,
    ) -> None:
        super().__init__(new_dim, old_dim, input_dim=input_dim, k=k, hidden=hidden, layers=layers)
        if not alpha >= 0 or not 0 <= label_smoothing < 1 or clusters < 2:
            raise ShapeError(
                "BCT expects alpha of 0 or more, label_smoothing in [0, 1) and 2 or more clusters; "
                f"received {alpha}, {label_smoothing}, {clusters}."
            )
        self.alpha, self.label_smoothing, self.clusters = alpha, label_smoothing, clusters
        self.old_classifier = None

    def objective(self, pairs: Pairs, seed: int) -> Objective:
        labels = pairs.labels
        if labels is not None:
            labelled.require(labels)
        else:
            labels = pseudo_classes.clusters(pairs.new, max(2, min(self.clusters, len(pairs.new) // 10)), seed)
        return Influence(self, labels, self._frozen(pseudo_classes.means(pairs.old, labels)))

    def _frozen(self, means: Tensor) -> Tensor:
        if self.old_classifier is None:
            return means
        given = self.old_classifier.detach().to(means)
        if given.shape != means.shape:
            raise ShapeError(f"old_classifier expects {list(means.shape)}, a row for each class; received {list(given.shape)}.")
        return torch.where(given.isnan().any(1, keepdim=True), means, given)


class Influence(Objective):
    """Both cross entropies."""

    frozen: Tensor

    def __init__(self, head: BCT, labels: Tensor, frozen: Tensor) -> None:
        super().__init__()
        self.alpha, self.smoothing, self.labels = head.alpha, head.label_smoothing, labels
        self.classifier = nn.Linear(head.full_dim, len(frozen), bias=False)
        self.register_buffer("frozen", frozen)

    def forward(self, h: Tensor, places: Tensor) -> Tensor:
        y, old_dim = self.labels[places], self.frozen.shape[1]
        own = self.classifier(F.normalize(h, dim=1))
        influence = F.normalize(h[:, :old_dim], dim=1) @ self.frozen.T
        return F.cross_entropy(own, y, label_smoothing=self.smoothing) + self.alpha * F.cross_entropy(
            influence, y, label_smoothing=self.smoothing
        )
