"""Figures of an edit against what defines them, and tracing."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from tiny_editing import MORE_FACTS, TOKENIZER, tiny

from instar.editing import drift, tracing
from instar.editing.evaluation import evaluate, harmonic, table
from instar.editing.ft import FineTune
from instar.editing.memit import MEMIT
from instar.editing.reporting import before_and_after
from instar.editing.tracing import Trace
from instar.errors import DataError, EditError, ModelError
from instar.receipt import fingerprint

FACTS = [
    replace(
        f, paraphrases=[f"Say that {f.prompt}", f"And so, {f.prompt}"], neighbours=["Big Ben stands in", "A pear is"][: i % 3]
    )
    for i, f in enumerate(MORE_FACTS)
]


def continued(model: torch.nn.Module, prompt: str, answer: str) -> tuple[float, float]:
    """Mean log-probability of the answer's tokens, and the share that are the likeliest: one text, the whole model."""
    first = len(TOKENIZER(prompt)["input_ids"])
    ids = TOKENIZER(f"{prompt} {answer}")["input_ids"]
    with torch.no_grad():
        logp = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)[first - 1 : -1]
    target = torch.tensor(ids[first:])
    return float(logp.gather(1, target[:, None]).mean()), float((logp.argmax(1) == target).float().mean())


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_every_prompt_is_asked(kind: str) -> None:
    model = tiny(kind)
    found = evaluate(model, TOKENIZER, FACTS)
    asked = iter(found.said)
    for number, fact in enumerate(FACTS):
        expected = [("rewrite", fact.prompt, fact.target, fact.old)]
        expected += [("paraphrase", prompt, fact.target, fact.old) for prompt in fact.paraphrases]
        expected += [("neighbour", prompt, fact.old, fact.target) for prompt in fact.neighbours]
        for name, prompt, wanted, other in expected:
            said = next(asked)
            assert (said.fact, said.kind) == (number, name)
            likely, right = continued(model, prompt, str(wanted))
            assert said.wanted == pytest.approx(likely, abs=1e-4)
            assert said.other == pytest.approx(continued(model, prompt, str(other))[0], abs=1e-4)
            assert said.accuracy == pytest.approx(right)
    assert next(asked, None) is None


def test_figures_are_means_over_prompts() -> None:
    found = evaluate(tiny("gpt2"), TOKENIZER, FACTS)
    for name, kind in (("efficacy", "rewrite"), ("generalisation", "paraphrase"), ("specificity", "neighbour")):
        some = [s for s in found.said if s.kind == kind]
        assert found.figures()[name] == pytest.approx(sum(s.wanted > s.other for s in some if s.other is not None) / len(some))
        assert found.figures()[f"{name} accuracy"] == pytest.approx(sum(s.accuracy for s in some) / len(some))
    three = [found.figures()[name] for name in ("efficacy", "generalisation", "specificity")]
    assert found.figures()["score"] == pytest.approx(harmonic(three))
    assert harmonic([0.5, 1.0]) == pytest.approx(2 / 3)
    assert harmonic([0.0, 1.0]) == 0


def test_what_is_not_known_is_no_figure() -> None:
    bare = [replace(f, old=None, paraphrases=(), neighbours=("Big Ben stands in",)) for f in FACTS]
    assert set(evaluate(tiny("gpt2"), TOKENIZER, bare).figures()) == {"efficacy accuracy"}
    assert "| drift |  | 0.500 |" in table({"efficacy": 1.0}, {"efficacy": 1.0, "drift": 0.5})


def test_drift_is_the_divergence_a_token_and_leaves_the_model_edited() -> None:
    model, base = tiny("llama"), tiny("llama")
    receipt = FineTune(layers=[1], lr=1e-2, steps=5).edit(model, TOKENIZER, FACTS[:2])
    edited = fingerprint(model)
    texts = ["Nothing is said here of any of them.", "x" * 3, "Rome is a city of Italy and always was. " * 9]
    found = drift.drift(model, TOKENIZER, receipt, texts)
    assert fingerprint(model) == edited
    divergence, nll, count = 0.0, 0.0, 0
    for text in texts:
        ids = torch.tensor(TOKENIZER(text)["input_ids"])
        for window in ids.split(128):
            with torch.no_grad():
                old, new = (m(input_ids=window[None]).logits[0, :-1].double().log_softmax(-1) for m in (base, model))
            divergence += float((old.exp() * (old - new)).sum())
            nll -= float(new.gather(1, window[1:, None]).sum())
            count += len(window) - 1
    assert found["drift"] == pytest.approx(divergence / count, rel=1e-3)
    assert found["perplexity after"] == pytest.approx(math.exp(nll / count), rel=1e-3)
    assert found["drift"] > 0
    with pytest.raises(DataError, match="two tokens or more"):
        drift.drift(model, TOKENIZER, receipt, [""])


def test_entropy_of_words() -> None:
    assert drift.entropy(["a", "b", "c", "d", "e"], 2) == pytest.approx(2.0)
    assert drift.entropy(["a", "a", "a", "a", "a"], 2) == 0
    assert drift.entropy(["a"], 2) == 0


def test_fluency_falls_where_the_model_repeats_itself() -> None:
    model = tiny("gpt2")
    varied = drift.fluency(model, TOKENIZER, ["Rome is", "A lemon is"], length=60)
    assert varied == drift.fluency(model, TOKENIZER, ["Rome is", "A lemon is"], length=60)
    with torch.no_grad():
        model.lm_head.weight.zero_()  # type: ignore[union-attr]
        word = TOKENIZER(" Rome")["input_ids"][-1]
        model.lm_head.weight[word] = model.transformer.ln_f.bias.fill_(1.0)  # type: ignore[union-attr]
        model.transformer.ln_f.weight.fill_(0.0)  # type: ignore[union-attr]
        model.lm_head.weight[word] *= 9  # type: ignore[union-attr]
    assert drift.fluency(model, TOKENIZER, ["Rome is", "A lemon is"], length=60) < 0.5 * varied


def test_fluency_stays_within_the_positions_of_the_model() -> None:
    model = tiny("gpt2")
    assert drift.fluency(model, TOKENIZER, ["Rome is"], length=500) > 0
    with pytest.raises(ModelError, match="128 positions"):
        drift.fluency(model, TOKENIZER, ["Rome is " * 100])


def test_tracing_finds_the_layer_that_holds_what_is_said() -> None:
    """Layers whose FFN puts out nothing have nothing to lose; the layer that is left has all of it."""
    model = tiny("llama")
    with torch.no_grad():
        for i in (0, 2, 3):
            model.model.layers[i].mlp.down_proj.weight.zero_()  # type: ignore[union-attr, index]
    FineTune(layers=[1], lr=5e-3, steps=150).edit(model, TOKENIZER, [replace(f, target=str(f.old)) for f in MORE_FACTS])
    found = tracing.trace(model, TOKENIZER, MORE_FACTS)
    assert found.facts >= 4
    assert [round(effect, 5) for effects in (found.removed, found.restored) for effect in (effects[0], *effects[2:])] == [0] * 6
    assert found.removed[1] > 0.1
    assert len(found.reachable) == 4


def test_layers_are_traced_in_the_type_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "_known", lambda model, where, tokenizer, facts: list(facts))
    found = tracing.trace(tiny("gpt2", dtype=torch.bfloat16), TOKENIZER, FACTS)
    assert len(found.removed) == len(found.restored) == 4
    assert all(math.isfinite(value) for value in found.removed + found.restored + found.reachable)


def test_traced_layers_without_facts() -> None:
    model = tiny("gpt2")
    assert len(MEMIT(layers="traced").edit(model, TOKENIZER, []).changes) == 0
    with pytest.raises(EditError, match="chooses its layers by its own facts"):
        MEMIT(layers="traced").fit_statistics(model, TOKENIZER)


def test_layers_end_where_another_answer_is_in_reach() -> None:
    falls = Trace(9, [0.1, 2.0, 1.5, 0.2, 0.1, 0.0], [0.1, 1.0, 1.0, 0.1, 0.0, 0.0], [0.5, 0.5, 0.55, 1.5, 2.5, 4.0])
    assert falls.layers() == [0, 1, 2]
    assert falls.layers(2) == [1, 2]
    flat = Trace(9, [0.0] * 4, [0.0] * 4, [0.3, 0.3, 0.3, 0.3])
    assert flat.layers() == [0, 1, 2, 3]


def test_tracing_needs_facts_that_are_known() -> None:
    with pytest.raises(EditError, match="knows none"):
        tracing.trace(tiny("gpt2"), TOKENIZER, [replace(f, old=None) for f in MORE_FACTS])
    with pytest.raises(EditError, match="knows none"):
        MEMIT(layers="traced").edit(tiny("gpt2"), TOKENIZER, [replace(FACTS[0], old=None)])


def test_before_and_after_in_one_table() -> None:
    model = tiny("llama")
    before = evaluate(model, TOKENIZER, FACTS).figures()
    receipt = FineTune(layers=[1], lr=5e-3, steps=60).edit(model, TOKENIZER, FACTS)
    edited = fingerprint(model)
    first, second = before_and_after(model, TOKENIZER, FACTS, receipt, ["Big Ben stands in London."], generations=1)
    assert fingerprint(model) == edited
    assert {name: first[name] for name in before} == pytest.approx(before)
    assert second["efficacy accuracy"] > first["efficacy accuracy"]
    assert second["drift"] > 0
    assert {*second} - {*first} == {"drift"}
    lines = table(first, second).splitlines()
    assert len(lines) == 2 + len(second)
