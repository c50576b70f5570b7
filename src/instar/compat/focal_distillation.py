"""Focal distillation, of positive-congruent training: stay close to the old version where it was right.

Yan, Xiong, Kundu, Yang, Deng, Wang, Xia, Soatto, "Positive-Congruent Training: Towards Regression-Free Model Updates", CVPR 2021
(arXiv 2011.09161).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from instar.compat.distilling import Distilling, Of, cross_entropy, settings
from instar.compat.muscle_loss import IGNORED
from instar.errors import ShapeError


class FocalDistillation(Distilling):
    """A copy of the task's adapter minimises CE(zC, y) + weight · mean_i w_i ½ ‖zC_i − z1_i‖² / V.

    w_i = alpha + beta · [argmax z1_i = y_i], with z1 of the old version.

    Args: alpha, beta, weight as above. answer_only, keep, lr, batch as `Muscle`. Raises ShapeError.

    The paper classifies images and sums over classes; a mean over the vocabulary keeps `weight` in the same range for any V.
    """

    teachers: ClassVar[tuple[Of, ...]] = ("old",)

    def __init__(
        self,
        *,
        alpha: float = 1.0,
        beta: float = 5.0,
        weight: float = 1.0,
        answer_only: bool = False,
        keep: int | None = None,
        lr: float | None = None,
        batch: int = 16,
    ) -> None:
        settings(lr, batch)
        if min(alpha, beta, weight) < 0:
            raise ShapeError(f"Weights of focal distillation are 0 or more; received {alpha}, {beta} and {weight}.")
        self.alpha, self.beta, self.weight = alpha, beta, weight
        self.answer_only, self.keep, self.lr, self.batch = answer_only, keep, lr, batch

    def loss(self, student: Tensor, teachers: Mapping[Of, Tensor], targets: Tensor) -> Tensor:
        real, old = targets != IGNORED, teachers["old"]
        distance = (student - old)[real].square().mean(-1) / 2
        right = old.argmax(-1)[real] == targets[real]
        return cross_entropy(student, targets) + self.weight * ((self.alpha + self.beta * right) * distance).mean()
