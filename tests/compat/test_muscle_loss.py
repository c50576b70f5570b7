"""The loss of MUSCLE: its written form, its limits, where gradients go, and what it refuses."""

from __future__ import annotations

import itertools
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from instar.compat.muscle_loss import IGNORED, Direction, Mask, MuscleLoss
from instar.errors import ShapeError

B, T, V = 3, 5, 11


def drawn(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits of student, old and new version that are often right, and targets, of which some are none."""
    draw = torch.Generator().manual_seed(seed)
    targets = torch.randint(V, (B, T), generator=draw)
    student, old, new = (
        torch.randn(B, T, V, generator=draw, dtype=torch.float64)
        + 2 * F.one_hot(targets, V) * torch.rand(B, T, 1, generator=draw)
        for _ in range(3)
    )
    targets[0, 3:] = IGNORED
    targets[2, 0] = IGNORED
    return student.requires_grad_(), old.requires_grad_(), new.requires_grad_(), targets


def kl(teacher: Tensor, student: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """By torch's own function."""
    real = targets != IGNORED
    p, q = ((z[real] / temperature).log_softmax(-1) for z in (teacher, student))
    return F.kl_div(q, p, reduction="batchmean", log_target=True)


@pytest.mark.parametrize(
    ("mask", "direction", "ce_weight"), list(itertools.product(get_args(Mask), get_args(Direction), (0.0, 0.3, 1.0)))
)
def test_both_forms_agree_in_value_and_gradient(mask: Mask, direction: Direction, ce_weight: float) -> None:
    loss = MuscleLoss(mask, 2.0, ce_weight, direction, squared=ce_weight == 0.3)
    student, old, new, targets = drawn(1)
    fast, reference = loss(student, old, new, targets), loss.reference(student, old, new, targets)
    assert torch.allclose(fast, reference, rtol=1e-12)
    (a,), (b,) = (torch.autograd.grad(one, [student]) for one in (fast, reference))
    assert torch.allclose(a, b, atol=1e-14)
    assert torch.autograd.gradcheck(lambda z: loss(z, old.detach(), new.detach(), targets), [student])


def test_full_and_empty_masks_are_plain_distillation() -> None:
    student, old, new, targets = drawn(2)
    assert torch.allclose(MuscleLoss("all", 3.0)(student, old, new, targets), kl(old, student, targets, 3.0))
    assert torch.allclose(MuscleLoss("none", 3.0)(student, old, new, targets), kl(new, student, targets, 3.0))
    assert torch.allclose(MuscleLoss("all", 3.0, direction="reverse")(student, old, new, targets), kl(student, old, targets, 3.0))
    nats = F.cross_entropy(student.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
    assert torch.allclose(MuscleLoss(ce_weight=1.0)(student, old, new, targets), nats)


def test_masks_are_what_they_are_called() -> None:
    student, old, _, targets = drawn(3)
    real, y = targets != IGNORED, targets.clamp(min=0)
    logp = {name: z.log_softmax(-1).gather(-1, y[..., None])[..., 0] for name, z in (("C", student), ("1", old))}
    behind = ((logp["C"] - logp["1"]) * real).sum(1) < 0
    expected = {
        "student_wrong": student.argmax(-1) != y,
        "old_correct": old.argmax(-1) == y,
        "likelihood": logp["C"] < logp["1"],
        "sequence_likelihood": behind[:, None].expand(B, T),
        "all": torch.ones(B, T, dtype=torch.bool),
        "none": torch.zeros(B, T, dtype=torch.bool),
    }
    for mask in get_args(Mask):
        found = MuscleLoss(mask).imitates_old(student, old, targets)
        assert torch.equal(found, expected[mask] & real), mask
        if mask not in ("all", "none", "sequence_likelihood"):
            assert 0 < int(found.sum()) < int(real.sum())  # otherwise this test says nothing


def test_at_the_start_only_wrong_tokens_teach() -> None:
    """The student is the new version: where it is right the loss is 0 and so is the gradient."""
    _, old, new, targets = drawn(4)
    student = new.detach().clone().requires_grad_()
    wrong = MuscleLoss().imitates_old(student, old, targets)
    (gradient,) = torch.autograd.grad(MuscleLoss()(student, old, new, targets), [student])
    size = gradient.abs().sum(-1)
    assert bool((size[wrong] > 1e-4).all())
    assert bool((size[~wrong] == 0).all())
    assert bool(wrong.any())
    loss = MuscleLoss("none")(student, old, new, targets)
    (gradient,) = torch.autograd.grad(loss, [student])
    assert float(loss.detach()) == 0.0
    assert bool((gradient == 0).all())


def test_equal_versions_teach_nothing() -> None:
    _, _, new, targets = drawn(5)
    for mask in get_args(Mask):
        student = new.detach().clone().requires_grad_()
        loss = MuscleLoss(mask)(student, new, new, targets)
        (gradient,) = torch.autograd.grad(loss, [student])
        assert float(loss.detach()) == 0.0, mask
        assert bool((gradient == 0).all()), mask


def test_hot_limit_is_half_the_squared_distance_of_centred_logits() -> None:
    student, old, new, targets = drawn(6)
    real = targets != IGNORED
    a, b = ((z - z.mean(-1, keepdim=True))[real] for z in (old, student))
    expected = ((a - b).square().sum(-1) / (2 * V)).mean()
    for temperature, tolerance in ((1e2, 0.05), (1e4, 5e-4)):
        found = MuscleLoss("all", temperature, squared=True)(student, old, new, targets)
        assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=tolerance)


def test_only_the_student_gets_gradients_and_padding_counts_for_nothing() -> None:
    student, old, new, targets = drawn(7)
    loss = MuscleLoss(ce_weight=0.2)(student, old, new, targets)
    loss.backward()
    assert old.grad is None
    assert new.grad is None
    assert student.grad is not None
    assert bool((student.grad[targets == IGNORED] == 0).all())
    nothing = torch.full((B, 2, V), torch.nan, dtype=torch.float64)
    longer = [torch.cat([z.detach(), nothing], 1) for z in (student, old, new)]
    padded = MuscleLoss(ce_weight=0.2)(*longer, F.pad(targets, (0, 2), value=IGNORED))
    assert torch.equal(padded, loss.detach())


def test_half_precision_is_computed_in_single() -> None:
    student, old, new, targets = drawn(8)
    low = [z.detach().bfloat16() for z in (student, old, new)]
    assert torch.equal(MuscleLoss()(*low, targets), MuscleLoss()(*(z.float() for z in low), targets))


def test_refusals() -> None:
    student, old, new, targets = drawn()
    for settings in ({"mask": "wrong"}, {"temperature": 0.0}, {"ce_weight": 1.5}, {"direction": "both"}):
        with pytest.raises(ShapeError):
            MuscleLoss(**settings)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="one shape"):
        MuscleLoss()(student, old[..., 1:], new, targets)
    with pytest.raises(ShapeError, match="padding"):
        MuscleLoss()(student, old, new, torch.full_like(targets, IGNORED))
