"""MUSCLE: a compatibility adapter for the new version of a language model, trained by masked distillation from both versions.

Echterhoff, Faghri, Vemulapalli, Hu, Li, Tuzel, Pouransari, "MUSCLE: A Model Update Strategy for Compatible LLM Evolution",
Findings of EMNLP 2024 (arXiv 2407.09435). No public code was found.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from instar.compat.distilling import Distilling, Of, settings
from instar.compat.muscle_loss import Direction, Mask, MuscleLoss


class Muscle(Distilling):
    """A copy of the new version's task adapter is trained to say what the old version said wherever it is wrong itself.

    Args:
        mask, temperature, ce_weight, direction, squared: as `MuscleLoss`.
        answer_only: distil at the tokens of answers only; the paper takes the whole text.
        keep: logits of each teacher that are kept for a token (its largest, as `Teacher`); None keeps all.
        lr: None is the rate of the task's adapter. batch: rows a step.

    Each teacher runs once over the rows; what it predicts is kept on disk (4 V bytes a token, or 8 keep + 4), so that training
    holds one model in memory. A step costs a forward and a backward pass of the new version; answering costs what it did.
    Raises ShapeError.
    """

    teachers: ClassVar[tuple[Of, ...]] = ("old", "new")

    def __init__(
        self,
        *,
        mask: Mask = "student_wrong",
        temperature: float = 2.0,
        ce_weight: float = 0.0,
        direction: Direction = "forward",
        squared: bool = False,
        answer_only: bool = False,
        keep: int | None = None,
        lr: float | None = None,
        batch: int = 16,
    ) -> None:
        settings(lr, batch)
        self._loss = MuscleLoss(mask, temperature, ce_weight, direction, squared)
        self.mask, self.temperature, self.ce_weight, self.direction, self.squared = (
            mask,
            temperature,
            ce_weight,
            direction,
            squared,
        )
        self.answer_only, self.keep, self.lr, self.batch = answer_only, keep, lr, batch

    def loss(self, student: Tensor, teachers: Mapping[Of, Tensor], targets: Tensor) -> Tensor:
        return self._loss(student, teachers["old"], teachers["new"], targets)
