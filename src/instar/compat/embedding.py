"""Heads that learn one embedding, wide as the old one or a little wider, by a loss against old vectors: BCT and its peers."""

from __future__ import annotations

import abc
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.bench.seeds import initialising
from instar.compat import backbone, fitting, training
from instar.compat.nested import NestedHead
from instar.errors import DataError, ShapeError
from instar.interfaces import Monitor, Pairs


class Objective(nn.Module, abc.ABC):
    """What an embedding is trained on; its own parameters (a classifier) are thrown away afterwards."""

    @abc.abstractmethod
    def forward(self, h: Tensor, places: Tensor) -> Tensor:
        """Outputs [B, width] of the backbone, before they become unit vectors, and whose they are [B] -> the mean loss."""


class Embedding(NestedHead):
    """e(x) = h / ‖h‖, h = backbone(x), of width O + k; its first O coordinates are compared with old vectors.

    Args:
        k: extra dimensions, which only new rows have.
        hidden, layers: of the backbone (`compat.backbone`).

    A subclass gives the objective. Raises ShapeError.
    """

    RECIPE: ClassVar = backbone.RECIPE

    def __init__(
        self, new_dim: int, old_dim: int, *, input_dim: int | None = None, k: int = 0, hidden: int = 512, layers: int = 1
    ) -> None:
        if k < 0:
            raise ShapeError(f"k expects 0 or more; received {k}.")
        super().__init__(new_dim, old_dim, old_dim + k, input_dim)
        self.k, self.hidden, self.layers = k, hidden, layers
        self.backbone = self._fresh()

    @abc.abstractmethod
    def objective(self, pairs: Pairs, seed: int) -> Objective:
        """For these pairs, which are `ready`."""

    def full(self, x: Tensor) -> Tensor:
        """x [N, input_dim] -> [N, O + k], of length 1."""
        return F.normalize(self.backbone(x), dim=1)

    def fit(self, pairs: Pairs, *, steps: int | None = None, seed: int = 0, monitor: Monitor | None = None) -> None:
        """Train from scratch; the head changes only when that is done. Raises DataError, ShapeError, DivergedError."""
        pairs = ready(self, pairs)
        x = pairs.x
        with initialising(seed):
            network = nn.ModuleList([self._fresh(), self.objective(pairs, seed)]).to(x)
        own, objective = network

        def loss(places: Tensor) -> Tensor:
            found: Tensor = objective(own(x[places]), places)
            return found

        training.train(network, loss, len(x), recipe=self.RECIPE, steps=steps, seed=seed, monitor=monitor)
        self.backbone.load_state_dict(own.state_dict())

    def _fresh(self) -> backbone.Backbone:
        return backbone.Backbone(self.input_dim, self.full_dim, hidden=self.hidden, layers=self.layers)


def ready(head: NestedHead, pairs: Pairs) -> Pairs:
    """The pairs as the head can learn from them: checked, unit targets, on its device and in its precision."""
    fitting.check(head, pairs)
    if head.previous is not None and head.previous.full_dim != head.old_dim:
        raise ShapeError(
            f"The head before stores vectors of width {head.previous.full_dim}, this one was built for {head.old_dim} (old_dim)."
        )
    like = next(head.parameters())
    labels = pairs.labels
    if labels is not None:
        whole = labels.dtype == torch.int64 and labels.shape == pairs.old.shape[:1]
        if not whole or int(labels.min()) < 0:
            raise DataError(
                f"labels expect int64 classes 0 … C − 1, one a pair; received {labels.dtype} {list(labels.shape)}. "
                "compat.pairs.of makes them from any classes."
            )
        labels = labels.to(like.device)
    old, new = (F.normalize(part.detach().to(like), dim=1) for part in (pairs.old, pairs.new))
    inputs = None if pairs.inputs is None else pairs.inputs.detach().to(like)
    return Pairs(old, new, labels, inputs)
