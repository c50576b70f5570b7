"""The search: what it accepts, what it leaves, that its short cuts change nothing, and that harm which was planted is found."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parent))
from axformer_models import batch, logits, made, trained, validation

from instar.checks.transform_models import labelled, structured_models
from instar.checks.witness import picture, require
from instar.compression import load, save
from instar.compression.axformer import Axformer
from instar.compression.head_importance import HeadImportance
from instar.compression.layer_dropping import LayerDropping
from instar.compression.pruning import Element, Plan, Removed, Rules, Validation, cut, masked, search
from instar.compression.pruning.importance import importance
from instar.compression.pruning.layout import layout
from instar.compression.pruning.scoring import error, sample_loss
from instar.compression.random_removal import RandomRemoval
from instar.errors import DataError, ShapeError, TransformError, UnknownNameError
from instar.receipt import fingerprint

SIZE = 16
SMALL = {"group_size": SIZE, "top_k": 3}


def mean(model: nn.Module, data: list[dict[str, Tensor]]) -> float:
    with torch.no_grad():
        return float(torch.cat([sample_loss(model, rows) for rows in data]).double().mean())


def accepted(plan: Plan) -> list[float]:
    return [plan.before, *(trial.loss for trial in plan.trials if trial.accepted and trial.loss is not None)]


def test_loss_falls_with_every_acceptance_and_is_that_of_the_cut_model() -> None:
    model = made("bert")
    data = [batch(model), batch(model, 4, 7)]
    before = picture(model)
    plan = search(model, data, Rules(**SMALL, nearly=1.5))
    require(model, before, "After a search")
    losses = accepted(plan)
    assert losses == sorted(losses, reverse=True)
    assert plan.removed.elements
    assert [str(t.element) for t in plan.trials if t.accepted] == [str(e) for e in plan.removed.elements]
    assert plan.before == pytest.approx(mean(model, data), rel=1e-6)
    with masked(model, plan.removed):
        assert mean(model, data) == pytest.approx(plan.after, rel=1e-6)
    with cut(model, plan.removed):
        assert mean(model, data) == pytest.approx(plan.after, rel=1e-4)
    assert plan.flops == layout(model, SIZE).share(plan.removed)
    assert json.loads(json.dumps(plan.json()))["evaluations"] == plan.evaluations
    assert search(made("bert"), data, Rules(**SMALL, nearly=1.5)) == plan


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("policy", ["accuracy", "efficiency"])
def test_cache_and_early_end_change_no_decision(kind: str, policy: Any) -> None:
    model = trained() if kind == "bert" else made(kind)
    data = validation() if kind == "bert" else [batch(model), batch(model, 4, 7)]
    rules = Rules(**SMALL, nearly=1.5, policy=policy, epsilon=0.02, order="gradient")
    slow = search(model, data, rules, cached=False, early=False)
    assert search(model, data, rules, early=False) == slow  # every loss, to the bit
    fast = search(model, data, rules)
    assert [(t.element, t.accepted) for t in fast.trials] == [(t.element, t.accepted) for t in slow.trials]
    assert (fast.removed, fast.after) == (slow.removed, slow.after)
    assert all(t.loss is None or t.loss == s.loss for t, s in zip(fast.trials, slow.trials, strict=True))


def test_the_cache_and_the_early_end_save_work() -> None:
    model, data = trained(), validation()
    blocks = {"first": 0, "last": 0}
    for name, layer in zip(blocks, model.bert.encoder.layer, strict=True):
        layer.attention.register_forward_hook(lambda *_, n=name: blocks.update({n: blocks[n] + 1}))
    counts = []
    for cached, early in ((False, False), (True, False), (True, True)):
        blocks.update(first=0, last=0)
        search(model, data, Rules(**SMALL, nearly=1.5), cached=cached, early=early)
        counts.append(dict(blocks))
    assert counts[1]["first"] < counts[0]["first"]
    assert sum(counts[2].values()) < sum(counts[1].values())


def test_evaluations_are_bounded() -> None:
    model, data = trained(), validation()
    parts = layout(model, SIZE)
    most = 3 * parts.depth + sum(parts.heads) + sum(parts.groups)
    plan = search(model, data, Rules(**SMALL, nearly=1000.0))
    assert plan.evaluations <= most
    assert search(model, data, Rules(**{**SMALL, "top_k": 0}, nearly=1.0)).evaluations <= 2 * parts.depth
    calls: list[tuple[int, float]] = []
    stopped = search(model, data, Rules(**SMALL), monitor=lambda step, loss: bool(calls.append((step, loss))) or step == 3)
    assert stopped.evaluations == 3
    assert [step for step, _ in calls] == [1, 2, 3]


@pytest.mark.parametrize("what", ["heads", "groups"])
def test_planted_noise_is_removed_and_nothing_that_is_needed(what: Any) -> None:
    model, data = trained(), validation(96)
    good = mean(model, data)
    layer = model.bert.encoder.layer[0]
    draw = torch.Generator().manual_seed(4)
    with torch.no_grad():
        if what == "heads":
            layer.attention.self.value.weight[8:16] = torch.randn(8, 32, generator=draw)
            layer.attention.output.dense.weight[:, 8:16] = 0.6 * torch.randn(32, 8, generator=draw)
        else:
            layer.intermediate.dense.weight[16:32] = torch.randn(16, 32, generator=draw)
            layer.output.dense.weight[:, 16:32] = 0.6 * torch.randn(32, 16, generator=draw)
    spoilt = mean(model, data)
    assert spoilt > good + 0.2
    plan = search(model, data, Rules(group_size=SIZE, top_k=0, nearly=1000.0))
    block = {"heads": "attention", "groups": "ffn"}[what]
    assert {Element(what, 0, 1), Element(block, 0)} & set(plan.removed.elements)
    assert plan.after < good + 0.1


def test_a_model_without_loss_is_left_alone() -> None:
    model = trained()
    perfect = Validation(validation(), lambda module, rows: 0 * sample_loss(module, rows))
    plan = search(model, perfect, Rules(**SMALL))
    assert plan.removed.elements == ()
    assert (plan.before, plan.after, plan.flops) == (0.0, 0.0, 1.0)


def test_too_many_samples_that_get_worse_reject_a_candidate_whose_mean_falls() -> None:
    model, data = trained(), validation(16, 1)

    def skewed(module: nn.Module, rows: Any) -> Tensor:
        """Once anything is out, one sample gets much better and the others a little worse."""
        touched = not torch.equal(logits(module, rows), whole)
        base = torch.ones(16)
        if touched:
            base = base + 0.01
            base[0] = 0.0
        return base

    whole = logits(model, data[0])
    for fraction, expected in ((0.5, False), (0.0, True)):
        plan = search(model, Validation(data, skewed), Rules(group_size=SIZE, top_k=0, min_not_worse=fraction))
        assert bool(plan.removed.elements) == expected


def test_efficiency_stays_within_its_limit_and_a_target_is_reached() -> None:
    model, data = trained(), validation()
    plan = search(model, data, Rules("efficiency", 0.1, group_size=SIZE, top_k=0))
    assert plan.after <= 1.1 * plan.before
    small = search(model, data, Rules("efficiency", 0.05, group_size=SIZE, top_k=0, flops=0.75, nearly=3.0))
    assert small.flops <= 0.75
    assert small.after <= (1 + 0.05 * 2**5) * small.before


def test_accuracy_as_the_measure() -> None:
    model, data = trained(), validation()
    plan = search(model, data, Rules(**SMALL, metric="accuracy"))
    with torch.no_grad():
        wrong = torch.cat([error(model, rows) for rows in data])
    assert plan.before == pytest.approx(float(wrong.mean()))
    assert set(wrong.tolist()) <= {0.0, 1.0}
    assert plan.after <= plan.before


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_losses_of_samples_are_those_of_the_model(kind: str) -> None:
    model = made(kind)
    rows = batch(model)
    rows["attention_mask"] = torch.ones_like(rows["attention_mask"])
    rows["labels"] = rows["labels"] if kind == "bert" else rows["input_ids"]
    with torch.no_grad():
        assert float(sample_loss(model, rows).mean()) == pytest.approx(float(model(**rows).loss), rel=1e-5)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_importance_is_the_derivative(kind: str) -> None:
    model = made(kind).double()
    rows = batch(model, 3)
    parts = layout(model, SIZE)
    h, close = (1e-2, 3e-3) if kind == "llama" else (1e-5, 1e-4)  # Llama's norms are in float32, whatever comes in

    def loss(module: nn.Module, given: Any) -> Tensor:
        """In double precision all the way."""
        logits: Tensor = module(input_ids=given["input_ids"], attention_mask=given["attention_mask"]).logits
        return logits.flatten(1).square().mean(1)

    found = importance(model, parts, Validation([rows], loss))
    assert len(found) == sum(parts.heads) + sum(parts.groups)
    for element in (Element("heads", 1, 1), Element("groups", 0, 2)):
        block = parts.parts.blocks[element.layer]
        linear = block.attention_out if element.kind == "heads" else block.ffn_out
        chosen = parts.columns(1, [1]) if element.kind == "heads" else parts.neurons(0, [2])
        old, losses = linear.weight.detach().clone(), []
        for factor in (1 + h, 1 - h):
            with torch.no_grad():
                linear.weight.copy_(torch.where(chosen, old * factor, old))
                losses.append(loss(model, rows))
                linear.weight.copy_(old)
        assert found[element] == pytest.approx(float(((losses[0] - losses[1]) / (2 * h)).abs().mean()), rel=close)


def test_applied_saved_and_undone(tmp_path: Path) -> None:
    model, data = trained(), validation()
    before, rows = picture(model), data[0]
    receipt = Axformer(**SMALL, nearly=1.5).apply(model, data)
    plan = receipt.facts.settings["plan"]
    assert plan["removed"] == search(trained(), data, Rules(**SMALL, nearly=1.5)).removed.json()
    found = load(save(model, tmp_path / "model", steps=[receipt]))
    assert torch.equal(logits(found, rows), logits(model, rows))
    receipt.undo()
    require(model, before, "After undo")
    zeroed = Axformer(policy="efficiency", epsilon=1.0, group_size=SIZE, top_k=0, form="zeroed").apply(model, data)
    assert {change.before.shape == change.after.shape for change in zeroed.changes if change.before and change.after} == {True}
    plain = made("bert")
    plain.load_state_dict(model.state_dict())
    assert mean(plain, data) == pytest.approx(zeroed.facts.settings["plan"]["after"], rel=1e-5)
    zeroed.undo()
    require(model, before, "After undo of the zeroed form")


def test_code_that_computes_otherwise_once_it_is_cut_is_found_before_the_search() -> None:
    model = trained()
    inner = model.bert.encoder.layer[1].intermediate
    original = inner.forward
    inner.forward = lambda x: F.pad(original(x), (0, 64 - original(x).shape[-1]))
    before = picture(model)
    with pytest.raises(TransformError, match="zeroed"):
        Axformer(**SMALL).apply(model, validation())
    require(model, before, "After the refusal")


@pytest.mark.parametrize("method", [RandomRemoval, LayerDropping, HeadImportance])
def test_baselines_reach_the_size_that_is_asked_and_no_less(method: Any) -> None:
    for make in structured_models().values():
        model = make()
        parts = layout(model, 64)
        removed = method(flops=0.6, group_size=64).plan(model, labelled())
        assert parts.share(removed) <= 0.6
        assert parts.share(Removed(removed.elements[:-1], group_size=64)) > 0.6
    assert RandomRemoval(seed=1).plan(make()) != RandomRemoval(seed=2).plan(make())
    with pytest.raises(ShapeError, match="flops expects"):
        method(flops=1.0)


def test_bad_input() -> None:
    model, data = trained(), validation()
    before = fingerprint(model)
    for wrong, message in (
        (None, "give them as data"),
        ([], "no validation batches"),
        ([{"input_ids": torch.ones(2, 3)}], "'labels'"),
        ([{**data[0], "labels": torch.ones_like(data[0]["labels"])}], "All 16 validation labels are 1"),
        (Validation(data, lambda module, rows: torch.full((16,), torch.nan)), "finite"),
        (Validation(data, lambda module, rows: torch.full((16,), -1.0)), "0 or more"),
        (Validation(data, lambda module, rows: torch.tensor(1.0)), "one number for each sample"),
    ):
        with pytest.raises((DataError, TransformError), match=message):
            Axformer(**SMALL).apply(model, wrong)
    for settings in ({"nearly": 0.5}, {"min_not_worse": 1.0}, {"flops": 1.0}, {"group_size": 0}, {"top_k": -1}, {"epsilon": -1}):
        with pytest.raises(ShapeError):
            Axformer(**settings)
    for settings in ({"policy": "speed"}, {"order": "random"}, {"metric": "f1"}, {"form": "sliced"}):
        with pytest.raises(UnknownNameError):
            Axformer(**settings)
    with pytest.raises(ShapeError, match="top_k=0"):
        Axformer(form="zeroed")
    assert fingerprint(model) == before
