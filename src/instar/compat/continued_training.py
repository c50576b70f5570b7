"""Continued training: the control that tells compatibility from more training."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from instar.compat.distilling import Distilling, Of, cross_entropy, settings


class ContinuedTraining(Distilling):
    """A copy of the new version's task adapter goes on as it began: cross-entropy, without a look at the old version.

    Args: answer_only, lr, batch as `Muscle`. Raises ShapeError.
    """

    def __init__(self, *, answer_only: bool = False, lr: float | None = None, batch: int = 16) -> None:
        settings(lr, batch)
        self.answer_only, self.lr, self.batch = answer_only, lr, batch

    def loss(self, student: Tensor, teachers: Mapping[Of, Tensor], targets: Tensor) -> Tensor:
        return cross_entropy(student, targets)
