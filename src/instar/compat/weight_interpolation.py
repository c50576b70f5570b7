"""Interpolation of weights between the new version's task adapter and one that imitates the old version."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from instar.adapters.attached import own_layers
from instar.compat.distilling import COMPATIBLE, Distilling, Of, settings
from instar.compat.muscle_loss import MuscleLoss
from instar.errors import ShapeError


class WeightInterpolation(Distilling):
    """θ = (1 − share) θ_task + share θ_old, where θ_old starts at θ_task and is distilled from the old version at every token.

    Args: share: 0 is the plain update, 1 plain distillation. temperature: of distillation. answer_only, keep, lr, batch as
    `Muscle`. Raises ShapeError.
    """

    teachers: ClassVar[tuple[Of, ...]] = ("old",)

    def __init__(
        self,
        *,
        share: float = 0.5,
        temperature: float = 2.0,
        answer_only: bool = False,
        keep: int | None = None,
        lr: float | None = None,
        batch: int = 16,
    ) -> None:
        settings(lr, batch)
        if not 0 <= share <= 1:
            raise ShapeError(f"Interpolation expects a share between 0 and 1; received {share}.")
        self._loss = MuscleLoss("all", temperature)
        self.share, self.temperature = share, temperature
        self.answer_only, self.keep, self.lr, self.batch = answer_only, keep, lr, batch

    def loss(self, student: Tensor, teachers: Mapping[Of, Tensor], targets: Tensor) -> Tensor:
        return self._loss(student, teachers["old"], teachers["old"], targets)

    @torch.no_grad()
    def finish(self, model: nn.Module, task: str) -> None:
        for layer in own_layers(model, COMPATIBLE).values():
            start = layer.adapters[task].state_dict()
            for name, tensor in layer.adapters[COMPATIBLE].state_dict().items():
                tensor.copy_(torch.lerp(start[name], tensor, self.share))
