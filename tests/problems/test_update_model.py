"""The problem of updated language models: what is trained and kept, how answers are chosen, and identities of flips."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from instar import catalogue
from instar.bench.run import lift
from instar.data import pretrained
from instar.errors import DataError, ShapeError
from instar.interfaces import Data
from instar.problems import update_model, update_model_gpt
from instar.problems.update_model import MODELS, UpdateModelProblem, Updating

LABELS = {"ask_time": "what time is it", "set_alarm": "wake me at", "play_song": "play some music", "tell_joke": "make me laugh"}
SMALL = {"train_items": 24, "test_items": 12, "choices": 3, "r": 2, "task_steps": 4, "batch": 4, "length": 32}


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Sentences of four labels, and a cache of their own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "sentences.csv"
    with path.open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["text", "label"])
        rows.writerows((f"{words} {n}", label) for label, words in LABELS.items() for n in range(25))
    return str(path)


def made(table: str, method: str = "plain_update", **settings: Any) -> tuple[UpdateModelProblem, Data, Updating]:
    problem = UpdateModelProblem(data=table, **{**SMALL, **settings})
    data = problem.load(0)
    address = catalogue.parse(method)
    return problem, data, lift(problem, address.slug, address.arguments, data, 0)


def test_every_sentence_is_judged_and_flips_add_up(table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for choices in (2, 3):
        problem, data, subject = made(table, "muscle", choices=choices)
        problem.fit(subject, data.train, steps=3, seed=0)
        found = problem.evaluate(subject, data.test)
        value = {name: items.value for name, items in found.items()}
        assert {len(items.totals) for items in found.values()} == {len(data.test.texts)}
        assert value["accuracy"] - value["old_accuracy"] == pytest.approx(value["pfr"] - value["nfr"], abs=1e-12)
        assert value["nfr"] <= min(value["old_accuracy"], 1 - value["accuracy"]) + 1e-12
        assert value["nfr_mc"] >= value["nfr"]
        if choices == 2:
            assert value["nfr_mc"] == value["nfr"]
        monkeypatch.setattr(update_model, "_SCORED", 5)
        assert problem.evaluate(subject, data.test) == found
        monkeypatch.undo()
        monkeypatch.setenv("XDG_CACHE_HOME", str(Path(table).parent / "cache"))


def test_the_answer_is_the_likeliest_text(table: str) -> None:
    problem, data, subject = made(table)
    problem.fit(subject, data.train, steps=1, seed=0)
    assert subject.answering is not None
    said = problem._answers(subject.answering, data.test)
    model, tokenizer = subject.versions.new, pretrained.load(str(MODELS / "new"), "causal")[1]
    for text, options, place in zip(data.test.texts[:4], data.test.choices, said.tolist(), strict=False):
        asked = tokenizer(text + "\n")["input_ids"]
        sums = []
        for option in options:
            answer = [*tokenizer(option)["input_ids"], tokenizer.eos_token_id]
            with torch.no_grad():
                logp = model(input_ids=torch.tensor([[*asked, *answer]])).logits[0].log_softmax(-1)
            sums.append(sum(float(logp[len(asked) - 1 + i, token]) for i, token in enumerate(answer)))
        assert place == int(np.argmax(sums))


def test_choices_hold_the_right_one_and_no_other_sentence_decides_them(table: str) -> None:
    problem, data, _ = made(table)
    for options, right in zip(data.test.choices, data.test.right, strict=True):
        assert len(set(options)) == len(options) == 3
        assert 0 <= right < 3
    fewer = UpdateModelProblem(data=table, **{**SMALL, "test_items": 6}).load(0)
    known = dict(zip(data.test.texts, data.test.choices, strict=True))
    assert all(known.get(text, options) == options for text, options in zip(fewer.test.texts, fewer.test.choices, strict=True))
    assert problem.load(1).train.texts != data.train.texts
    assert problem.load(1).test == data.test


def test_adapters_of_a_task_are_trained_once(table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem, data, subject = made(table)
    problem.fit(subject, data.train, steps=1, seed=0)
    first = problem.evaluate(subject, data.test)

    def never(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(UpdateModelProblem, "_train", never)
    problem, data, again = made(table)
    problem.fit(again, data.train, steps=1, seed=0)
    assert problem.evaluate(again, data.test) == first
    one, other = (update_model._tensors(one.versions.new) for one in (subject, again))
    assert all(torch.equal(one[key], other[key]) for key in one)
    with pytest.raises(AssertionError, match="trained again"):
        made(table, task_steps=5)


def test_an_unchanged_model_has_no_flips(table: str) -> None:
    old = str(MODELS / "old")
    problem, data, subject = made(table, old=old, new=old)
    problem.fit(subject, data.train, steps=1, seed=0)
    value = {name: items.value for name, items in problem.evaluate(subject, data.test).items()}
    assert value["nfr"] == value["pfr"] == value["nfr_mc"] == 0.0


def test_the_versions_that_come_with_the_package() -> None:
    """They share their tokens, and are of the recipe that is told."""
    tokenizers = [pretrained.load(str(MODELS / one.name), "causal")[1] for one in (update_model_gpt.OLD, update_model_gpt.NEW)]
    assert tokenizers[0].get_vocab() == tokenizers[1].get_vocab()
    assert len(tokenizers[0]) == update_model_gpt.VOCABULARY
    expected = update_model_gpt.make_model(tokenizers[0])
    shapes = {name: tuple(p.shape) for name, p in expected.named_parameters()}
    for one in ("old", "new"):
        model = pretrained.load(str(MODELS / one), "causal")[0]
        assert {name: tuple(p.shape) for name, p in model.named_parameters()} == shapes


def test_settings_that_make_no_sense(table: str) -> None:
    for wrong in ({"choices": 1}, {"task_lr": 0.0}, {"length": 2}, {"batch": 0}):
        with pytest.raises(ShapeError, match="update_model expects"):
            UpdateModelProblem(**wrong)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="together"):
        UpdateModelProblem(old="somewhere")
