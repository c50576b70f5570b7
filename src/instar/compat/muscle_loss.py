"""Masked distillation from two teachers: the loss of MUSCLE, its ablation, and the same written as in the paper."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from instar.errors import ShapeError

Mask = Literal["student_wrong", "old_correct", "likelihood", "sequence_likelihood", "all", "none"]
Direction = Literal["forward", "reverse"]
IGNORED = -100
"""A target that is none: padding, or a token that is not learnt."""


@dataclass(frozen=True)
class MuscleLoss:
    r"""L = (1 − λ) CE(zC, y) + λ/n Σ_i [ m_i KL_T(z1_i ‖ zC_i) + (1 − m_i) KL_T(z2_i ‖ zC_i) ], n real tokens, λ = 1 − ce_weight.

    KL_T(a ‖ b) = KL(softmax(a/T) ‖ softmax(b/T)). Where m is 1 the student imitates the old version (z1), elsewhere the new
    one (z2).

    Args:
        mask: m_i is 1 where, with the next token y_i:
            student_wrong        argmax zC_i ≠ y_i, the method; of the student as it is at this step
            old_correct          argmax z1_i = y_i
            likelihood           p_C(y_i) < p_1(y_i)
            sequence_likelihood  the same of the whole row: Σ log p_C(y) < Σ log p_1(y)
            all                  everywhere: plain distillation from the old version
            none                 nowhere: from the new one, where the student starts, so that it stays there
        temperature: T. ce_weight: of cross-entropy; the paper's auxiliary form for versions that lie far apart.
        direction: "reverse" takes KL_T(zC ‖ z) instead.
        squared: multiply KL by T², which keeps the size of its gradient as T grows (Hinton et al. 2015); the paper states none.

    Called with logits [B, T, V] of student, old and new version, and targets [B, T] (`IGNORED` where there is none); returns the
    mean over real tokens. Gradients reach the student only, and not through the mask; ties of argmax go to the first.
    One KL a token, O(B T V): the teacher is chosen before. Raises ShapeError.

    Echterhoff, Faghri, Vemulapalli, Hu, Li, Tuzel, Pouransari, "MUSCLE: A Model Update Strategy for Compatible LLM Evolution",
    Findings of EMNLP 2024 (arXiv 2407.09435).
    """

    mask: Mask = "student_wrong"
    temperature: float = 2.0
    ce_weight: float = 0.0
    direction: Direction = "forward"
    squared: bool = False

    def __post_init__(self) -> None:
        for name, value, known in (("mask", self.mask, get_args(Mask)), ("direction", self.direction, get_args(Direction))):
            if value not in known:
                raise ShapeError(f"MuscleLoss expects {name} of {', '.join(known)}; received {value!r}.")
        if not 0 < self.temperature < float("inf") or not 0 <= self.ce_weight <= 1:
            raise ShapeError(
                "MuscleLoss expects a temperature above 0 and ce_weight between 0 and 1; received "
                f"{self.temperature} and {self.ce_weight}."
            )

    def __call__(self, student: Tensor, old: Tensor, new: Tensor, targets: Tensor) -> Tensor:
        _require(student, old, new, targets)
        real = targets != IGNORED
        m = self.imitates_old(student, old, targets)[real]
        zC, y = _wide(student[real]), targets[real]
        teacher = torch.where(m[:, None], _wide(old.detach()[real]), _wide(new.detach()[real]))
        loss = self._divergence(teacher, zC).mean()
        if self.ce_weight:
            loss = (1 - self.ce_weight) * loss + self.ce_weight * F.cross_entropy(zC, y)
        return loss

    def reference(self, student: Tensor, old: Tensor, new: Tensor, targets: Tensor) -> Tensor:
        """The same, token by token and with both terms, to be read beside the paper."""
        _require(student, old, new, targets)
        masks = self.imitates_old(student, old, targets)
        terms = []
        for b, t in (targets != IGNORED).nonzero().tolist():
            z1, z2, zC, y = _wide(old[b, t].detach()), _wide(new[b, t].detach()), _wide(student[b, t]), targets[b, t]
            m = masks[b, t].to(zC.dtype)
            term = m * self._divergence(z1, zC) + (1 - m) * self._divergence(z2, zC)
            terms.append((1 - self.ce_weight) * term - self.ce_weight * zC.log_softmax(-1)[y])
        return torch.stack(terms).mean()

    @torch.no_grad()
    def imitates_old(self, student: Tensor, old: Tensor, targets: Tensor) -> Tensor:
        """m, bool [B, T]; False where there is no target."""
        real = targets != IGNORED
        y = targets.clamp(min=0)
        if self.mask == "student_wrong":
            return real & (student.argmax(-1) != y)
        if self.mask == "old_correct":
            return real & (old.argmax(-1) == y)
        if self.mask in ("all", "none"):
            return real & (self.mask == "all")
        gain = _log_p(student, y) - _log_p(old, y)
        if self.mask == "sequence_likelihood":
            gain = (gain * real).sum(-1, keepdim=True)
        return real & (gain < 0)

    def _divergence(self, teacher: Tensor, student: Tensor) -> Tensor:
        """KL of the last axis."""
        p, q = (teacher / self.temperature).log_softmax(-1), (student / self.temperature).log_softmax(-1)
        if self.direction == "reverse":
            p, q = q, p
        found = (p.exp() * (p - q)).sum(-1)
        # Less than this is rounding. Its gradient is nothing as well, but Adam would make whole steps of it.
        found = torch.where(found.detach().abs() <= torch.finfo(found.dtype).eps, 0, found)
        return found * self.temperature**2 if self.squared else found


def _log_p(logits: Tensor, y: Tensor) -> Tensor:
    return _wide(logits).log_softmax(-1).gather(-1, y[..., None])[..., 0]


def _wide(logits: Tensor) -> Tensor:
    """Half precision is too coarse for a divergence."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _require(student: Tensor, old: Tensor, new: Tensor, targets: Tensor) -> None:
    shapes = [tuple(z.shape) for z in (student, old, new)]
    if len(set(shapes)) > 1 or student.dim() != 3 or targets.shape != student.shape[:2]:
        raise ShapeError(
            f"MuscleLoss expects three logits of one shape [B, T, V] and targets [B, T]; received {', '.join(map(str, shapes))} "
            f"and {tuple(targets.shape)}."
        )
    if not bool((targets != IGNORED).any()):
        raise ShapeError("MuscleLoss expects at least one target; all are padding.")
