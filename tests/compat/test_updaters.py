"""Updaters beyond their contract: what each one's training aims at, and what becomes of the adapter."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from instar.adapters import load, merge_and_unload, save, switch
from instar.adapters.attached import active, names, own_layers
from instar.checks.updater import world
from instar.compat.continued_training import ContinuedTraining
from instar.compat.distilling import COMPATIBLE, batch, nats
from instar.compat.ensemble import Ensemble
from instar.compat.focal_distillation import FocalDistillation
from instar.compat.muscle import Muscle
from instar.compat.plain_update import PlainUpdate
from instar.compat.teacher import DATA, logits
from instar.compat.weight_interpolation import WeightInterpolation
from instar.errors import AdapterError, DivergedError, ShapeError
from instar.interfaces import Updater, Versions

IDS = torch.tensor([[1, 2, 3, 4, 5, 6], [12, 13, 14, 9, 8, 7]])
MASK = torch.ones_like(IDS)


def divergence(versions: Versions, of: nn.Module) -> float:
    """KL from a model to the new version over the rows, mean over their tokens."""
    ids, mask, targets, _ = batch(versions, 0, size=len(versions.rows), seed=0)
    p, q = (logits(model, ids, mask)[:, :-1][targets >= 0].log_softmax(-1) for model in (of, versions.new))
    return float((p.exp() * (p - q)).sum(-1).mean())


def tensors(model: nn.Module, name: str) -> dict[str, Tensor]:
    layers = own_layers(model, name).items()
    return {f"{path}/{key}": t for path, layer in layers for key, t in layer.adapters[name].state_dict().items()}


def test_distillation_comes_closer_to_the_old_version_and_the_empty_mask_stays() -> None:
    versions = world()
    start = divergence(versions, versions.old)
    Muscle(mask="all", batch=5).update(versions, steps=60)
    assert divergence(versions, versions.old) < 0.8 * start


@pytest.mark.parametrize("equal", [False, True])
def test_nothing_moves_without_a_difference(equal: bool) -> None:
    """An empty mask, or equal versions: not a bit, although Adam would make whole steps of rounding."""
    versions = world()
    if equal:
        versions = replace(versions, old=copy.deepcopy(versions.new))
    before = tensors(versions.new, "task")
    Muscle(mask="student_wrong" if equal else "none", batch=2).update(versions, steps=20)
    after = tensors(versions.new, COMPATIBLE)
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_continued_training_lowers_cross_entropy_and_reads_no_teacher(tmp_path: Path) -> None:
    versions = world()
    part = batch(versions, 0, size=5, seed=0)
    before = float(nats(versions.new, part).detach())
    ContinuedTraining(batch=5).update(versions, steps=60, folder=tmp_path)
    assert float(nats(versions.new, part).detach()) < before - 0.1
    assert not list(tmp_path.rglob(DATA))


def test_the_compatible_adapter_is_the_active_one_beside_the_tasks_and_can_be_saved_and_merged(tmp_path: Path) -> None:
    versions = world()
    answering = Muscle(batch=5).update(versions, steps=10)
    assert names(versions.new) == ["task", COMPATIBLE]
    assert active(versions.new) == COMPATIBLE
    said = answering.logits(IDS, MASK)
    save(versions.new, tmp_path / "adapter")
    other = world().new
    load(other, tmp_path / "adapter", name="again")
    assert torch.equal(logits(other, IDS, MASK), said)
    merge_and_unload(versions.new)
    assert torch.allclose(logits(versions.new, IDS, MASK), said, atol=1e-5)
    with pytest.raises(AdapterError, match="no active adapter"):
        Muscle().update(versions, steps=1)


def test_a_second_update_needs_another_place() -> None:
    versions = world()
    Muscle(batch=5).update(versions, steps=1)
    with pytest.raises(AdapterError, match=COMPATIBLE):
        Muscle(batch=5).update(versions, steps=1)


def test_kept_logits_bound_the_file_and_all_of_them_are_exact(tmp_path: Path) -> None:
    every = Muscle(batch=2).update(world(), steps=6).logits(IDS, MASK)
    exact = Muscle(batch=2, keep=23).update(world(), steps=6).logits(IDS, MASK)
    assert torch.equal(every, exact)
    Muscle(batch=2, keep=3).update(world(), steps=1, folder=tmp_path)
    tokens = sum(len(asked) + len(answer) - 1 for asked, answer in world().rows)
    assert [path.stat().st_size for path in sorted(tmp_path.rglob(DATA))] == [tokens * 28] * 2


def test_only_answers_are_learnt_where_that_is_asked() -> None:
    versions = world()
    ids, _, targets, places = batch(versions, 0, size=5, seed=3, answer_only=True)
    for row, wanted, place in zip(ids, targets, places, strict=True):
        asked, answer = versions.rows[place]
        assert wanted[wanted >= 0].tolist() == list(answer)
        assert wanted[: len(asked) - 1].eq(-100).all()
        assert row[: len(asked)].tolist() == list(asked)
    _, _, every, places = batch(versions, 0, size=5, seed=3)
    assert int((every >= 0).sum()) == sum(len(a) + len(b) - 1 for a, b in (versions.rows[i] for i in places))


def test_an_ensemble_is_the_mean_of_its_members_probabilities() -> None:
    versions = world()
    alone = logits(versions.new, IDS, MASK)
    answering = Ensemble(members=2, old=True, batch=5).update(versions, steps=5)
    assert answering.passes == 3
    assert active(versions.new) == "task"
    switch(versions.new, "member_1")
    member = logits(versions.new, IDS, MASK)
    switch(versions.new, "task")
    expected = sum(z.softmax(-1) for z in (alone, member, logits(versions.old, IDS, MASK))) / 3
    assert torch.allclose(answering.logits(IDS, MASK).exp(), expected, atol=1e-6)
    assert not torch.allclose(member, alone)


def test_a_monitor_ends_an_ensemble_with_the_members_that_there_are() -> None:
    told: list[int] = []
    answering = Ensemble(members=4, batch=5).update(
        world(), steps=3, monitor=lambda step, loss: bool(told.append(step)) or step == 5
    )
    assert told == [1, 2, 3, 4, 5]
    assert answering.passes == 3


def test_interpolation_lies_between() -> None:
    versions, whole, half = world(), world(), world()
    start = tensors(versions.new, "task")
    WeightInterpolation(share=1.0, batch=5).update(whole, steps=8)
    WeightInterpolation(share=0.5, batch=5).update(half, steps=8)
    end, middle = tensors(whole.new, COMPATIBLE), tensors(half.new, COMPATIBLE)
    assert all(torch.allclose(middle[key], (start[key] + end[key]) / 2, atol=1e-6) for key in start)
    assert any(not torch.equal(start[key], end[key]) for key in start)


def test_focal_distillation_weighs_what_the_old_version_got_right() -> None:
    student = torch.zeros(1, 2, 4, requires_grad=True)
    old = torch.tensor([[[3.0, 0, 0, 0], [3.0, 0, 0, 0]]])
    targets = torch.tensor([[0, 1]])  # the old version is right, then wrong
    loss = FocalDistillation(alpha=1.0, beta=5.0, weight=2.0).loss(student, {"old": old}, targets)
    assert float(loss.detach()) == pytest.approx(float(torch.tensor(4.0).log()) + 2.0 * (6 + 1) / 2 * 9 / 4 / 2)


@pytest.mark.parametrize("updater", [Muscle(lr=1e20, batch=5), ContinuedTraining(lr=1e20, batch=5)])
def test_divergence_is_said(updater: Updater) -> None:
    with pytest.raises(DivergedError):
        updater.update(world(), steps=20)


def test_a_plain_update_learns_nothing() -> None:
    versions = world()
    before = logits(versions.new, IDS, MASK)
    assert torch.equal(PlainUpdate().update(versions, steps=50).logits(IDS, MASK), before)
    assert names(versions.new) == ["task"]


def test_settings_are_refused() -> None:
    for make in (
        lambda: Muscle(lr=0.0),
        lambda: Muscle(batch=0),
        lambda: Ensemble(members=1),
        lambda: WeightInterpolation(share=2.0),
        lambda: FocalDistillation(beta=-1.0),
    ):
        with pytest.raises(ShapeError):
            make()
