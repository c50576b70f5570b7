"""The problem of specialised classifiers: splits that do not meet, one fine-tuned model for all methods, everything scored."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from instar import catalogue
from instar.catalogue import Build
from instar.compression.layer_dropping import LayerDropping
from instar.compression.random_removal import RandomRemoval
from instar.data.sentences import Labelled
from instar.errors import DataError, MissingExtraError, ShapeError, UnknownNameError
from instar.problems import specialise, tuned_classifier
from instar.problems.specialise import SpecialiseProblem

SMALL: dict[str, Any] = {"train_items": 8, "search_items": 12, "epochs": 1, "batch": 8}


def test_sentences_to_choose_by_are_apart_and_their_labels_can_be_shuffled() -> None:
    try:
        first, second = SpecialiseProblem(**SMALL).load(0), SpecialiseProblem(**SMALL).load(1)
    except (DataError, MissingExtraError) as error:  # what is not there, and nothing that is wrong
        pytest.skip(str(error))
    assert first.sha256 == second.sha256
    assert list(first.test.texts) == list(second.test.texts)
    assert list(first.train.chosen.texts) != list(second.train.chosen.texts)
    assert not set(first.train.tuned.texts) & set(first.train.chosen.texts)
    shuffled = SpecialiseProblem(**SMALL, labels="shuffled").load(0).train
    assert list(shuffled.tuned.labels) == list(first.train.tuned.labels)
    assert list(shuffled.chosen.texts) == list(first.train.chosen.texts)
    assert list(shuffled.chosen.labels) != list(first.train.chosen.labels)
    assert sorted(shuffled.chosen.labels) == sorted(first.train.chosen.labels)


@pytest.mark.parametrize("batch", [2, 3, 16])
def test_fewer_sentences_than_a_batch_are_learnt_from(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 9}
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**sizes, num_labels=2))
    before = model.classifier.weight.detach().clone()
    steps: list[int] = []
    fit = tuned_classifier.fit
    monkeypatch.setattr(tuned_classifier, "fit", lambda *a, **given: (steps.append(given["steps"]), fit(*a, **given)))
    tuning = tuned_classifier.Tuning("none", ["a", "b"], 2, 1e-2, batch, 8)
    tokenizer = lambda texts, **_: {"input_ids": torch.tensor([[len(text), 1] for text in texts])}  # noqa: E731
    tuning._train(model, tokenizer, Labelled(["x", "xx", "xxx"], ["a", "b", "a"]), 0)
    assert steps == [2]
    assert not torch.equal(model.classifier.weight, before)


def test_methods_take_parts_out_of_the_same_model_and_every_sentence_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    memory: dict[str, Any] = {}

    def kept(recipe: Any, make: Any) -> Any:
        return memory.get(str(recipe)) or memory.setdefault(str(recipe), make())

    for module in (specialise, tuned_classifier):
        monkeypatch.setattr(module, "kept", kept)
    problem = SpecialiseProblem(**SMALL)
    try:
        data = problem.load(0)
        problem.tuning.tuned(data.train.tuned, 0)
    except (DataError, MissingExtraError) as error:  # what is not there, and nothing that is wrong
        pytest.skip(str(error))
    test = Labelled(data.test.texts[:10], data.test.labels[:10])
    card = catalogue.problem("specialise")
    subjects = {
        cls: problem.subject(Build(catalogue.method(cls.method), cls, {}), data, 0) for cls in (LayerDropping, RandomRemoval)
    }
    found = {cls: problem.evaluate(subject, test) for cls, subject in subjects.items()}
    for items in found.values():
        assert set(items) == {m.id for m in card.metrics if m.kind == "quality"}
        assert [len(i.totals) for i in items.values()] == [12 if name.startswith("search") else 10 for name in items]
    one, other = found.values()
    assert one["loss@full"] == other["loss@full"]
    assert len({str(items.totals) for items in (one["loss@full"], one["loss@pruned"], other["loss@pruned"])}) == 3
    costs = problem.costs(subjects[RandomRemoval])
    assert set(costs) == {m.id for m in card.metrics if m.kind == "cost"}
    assert 0.6 < costs["kept_flops"] < 0.75
    assert 0.8 < costs["kept_bytes"] < 0.9  # the table of embeddings, half of the model, stays
    calls = {workload.metric: workload.prepare(subjects[RandomRemoval]) for workload in problem.workloads()}
    assert set(calls) == {m.id for m in card.metrics if m.kind == "time"}
    whole, pruned = calls["predict_seconds@full"](), calls["predict_seconds@pruned"]()
    assert isinstance(whole, list)
    assert isinstance(pruned, list)
    assert not torch.equal(whole[0].logits, pruned[0].logits)


def test_settings_that_make_no_sense() -> None:
    for wrong in ({"search_items": 1}, {"lr": 0.0}, {"length": 2}, {"epochs": 0}):
        with pytest.raises(ShapeError, match="specialise expects"):
            SpecialiseProblem(**wrong)
    with pytest.raises(UnknownNameError, match="labels"):
        SpecialiseProblem(labels="random")  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"asked for|Cannot fetch"):  # the second where the data are neither here nor reachable
        SpecialiseProblem(train_items=10**6).load(0)
