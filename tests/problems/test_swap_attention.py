"""The problem of swapped attention: the model stays as it was, softmax is the identity, distillation brings a mixer nearer."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from instar.doors.replacing import mixer_for, trained
from instar.errors import ShapeError
from instar.problems.swap_attention import Subject, SwapAttentionProblem
from instar.receipt import fingerprint

transformers = pytest.importorskip("transformers")

WINDOWS = torch.randint(1, 50, (6, 12), generator=torch.Generator().manual_seed(0))


def model() -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    found = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, num_key_value_heads=2, max_position_embeddings=64))
    for name, parameter in found.named_parameters():
        if "attn" in name:
            parameter.data.add_(0.3 * torch.randn_like(parameter))
    return found.eval()


def subject(name: str) -> Subject:
    whole = model()
    chosen = trained(whole)
    return Subject(whole, chosen, name, {one.path: mixer_for(one, name, {}) for one in chosen})


def test_softmax_for_softmax_changes_nothing_and_learns_nothing() -> None:
    problem, under_test = SwapAttentionProblem(windows=2, train_windows=4, length=12, lr=5e-3), subject("softmax")
    before = {path: fingerprint(mixer) for path, mixer in under_test.mixers.items()}
    told = []
    problem.fit(under_test, WINDOWS[:4], steps=3, seed=0, monitor=lambda step, loss: told.append(step))
    assert {path: fingerprint(mixer) for path, mixer in under_test.mixers.items()} == before
    assert told[-1] == 3
    scored = problem.evaluate(under_test, WINDOWS[4:])
    assert scored["nats@swapped"].value == pytest.approx(scored["nats@model"].value, rel=1e-5)
    assert scored["error@before"].value < 1e-5


def test_distillation_brings_a_mixer_nearer_and_leaves_the_model_alone() -> None:
    problem, under_test = SwapAttentionProblem(windows=2, train_windows=4, length=12, lr=5e-3), subject("gla")
    whole = fingerprint(under_test.model)
    problem.fit(under_test, WINDOWS[:4], steps=60, seed=0)
    learnt = problem.evaluate(under_test, WINDOWS[:4])
    assert learnt["error@swapped"].value < 0.8 * learnt["error@before"].value
    scored = problem.evaluate(under_test, WINDOWS[4:])
    assert fingerprint(under_test.model) == whole
    assert {len(items.totals) for items in scored.values()} == {2}
    with torch.no_grad():
        loss = under_test.model(WINDOWS[4:], labels=WINDOWS[4:]).loss
    assert scored["nats@model"].value == pytest.approx(float(loss), rel=1e-5)


def test_settings_that_make_no_sense() -> None:
    for wrong in ({"windows": 0}, {"length": 1}, {"every": 0}, {"lr": 0.0}):
        with pytest.raises(ShapeError, match="swap_attention expects"):
            SwapAttentionProblem(**wrong)
