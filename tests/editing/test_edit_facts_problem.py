"""The problem edit_facts: the facts-GPT that comes with the package, its facts, and what the engine does with them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from instar import catalogue
from instar.bench.run import lift
from instar.data import pretrained
from instar.data.facts import TEMPLATES, entities
from instar.errors import DataError, EditError, MissingExtraError, ShapeError
from instar.problems import edit_facts_gpt as gpt
from instar.problems.edit_facts import MODEL, TRACED, EditFactsProblem
from instar.receipt import fingerprint


@pytest.fixture(scope="module")
def problem() -> EditFactsProblem:
    made = EditFactsProblem(edits=4)
    try:
        made.load(0)
    except (DataError, MissingExtraError) as error:
        pytest.skip(str(error))
    return made


def test_the_model_knows_its_facts(problem: EditFactsProblem) -> None:
    model, tokenizer = pretrained.load(MODEL, kind="causal")
    known = entities()
    assert sum(file.stat().st_size for file in MODEL.iterdir()) < 4_500_000
    assert gpt.recall(model, tokenizer, known[::10]) > 0.9


def test_facts_are_false_answers_with_real_neighbours(problem: EditFactsProblem) -> None:
    data = problem.load(3)
    known = {e.name: e for e in entities()}
    assert len(data.test.facts) == len(data.valid.facts) == 4
    assert not {f.subject for f in data.test.facts} & {f.subject for f in data.valid.facts}
    for fact in data.test.facts:
        entity = known[fact.subject]
        (relation,) = [r for r in entity.known if entity.prompts(r)[0] == fact.prompt]
        assert fact.old == entity.known[relation] != fact.target
        assert list(fact.paraphrases) == entity.prompts(relation)[1:]
        for prompt in fact.neighbours:
            others = [e for e in known.values() if e.kind == entity.kind and e.prompts(relation)[0] == prompt]
            assert [e.known[relation] for e in others] == [fact.old]
            assert others[0].name != fact.subject
        assert not any(fact.subject in text for text in data.test.elsewhere)
    other = problem.load(4)
    assert problem.load(3).test == data.test != other.test
    assert problem.load(3).sha256 == data.sha256 == other.sha256  # records of several seeds are of one set of facts


def test_no_neighbour_is_rewritten_by_the_same_edit(problem: EditFactsProblem) -> None:
    """Or an editor that does all that it is asked for could not reach a specificity of 1."""
    for seed in range(5):
        for split in (EditFactsProblem(edits=30).load(seed).test, problem.load(seed).valid):
            rewritten = {fact.prompt for fact in split.facts}
            assert not [prompt for fact in split.facts for prompt in fact.neighbours if prompt in rewritten]
            assert all(fact.neighbours for fact in split.facts)


def test_an_edit_is_judged_and_undone(problem: EditFactsProblem) -> None:
    data = problem.load(0)
    subject = lift(problem, "memit", {"steps": 15, "clamp": 10.0}, data, 0)
    assert subject.editor.layers == TRACED
    base = fingerprint(subject.model)
    told: list[int] = []
    problem.fit(subject, data.train, steps=1, seed=0, monitor=lambda step, loss: told.append(step))
    found = problem.evaluate(subject, data.test)
    assert told == [1]
    assert fingerprint(subject.model) == base
    assert set(found) <= {m.id for m in catalogue.problem("edit_facts").metrics}
    assert [len(found[name].weights) for name in ("efficacy", "generalisation", "specificity")] == [4, 4, 4]
    assert found["generalisation"].weights == [2.0] * 4
    assert found["efficacy"].value > 0
    assert found["drift"].value > 0


def test_the_users_own_facts_and_model(tmp_path: Path, problem: EditFactsProblem) -> None:
    facts = problem.load(0).test.facts
    path = tmp_path / "facts.jsonl"
    path.write_text("\n".join(json.dumps({**asdict(f), "paraphrases": list(f.paraphrases)}) for f in facts))
    own = EditFactsProblem(data=str(path), model=str(MODEL), edits=2, layers=[1])
    data = own.load(0)
    subject = lift(own, "ft", {"steps": 3}, data, 0)
    assert set(own.evaluate(subject, data.test)) >= {"efficacy", "score", "drift"}
    bare = [{"prompt": f.prompt, "subject": f.subject, "target": f.target} for f in facts]
    path.write_text("\n".join(map(json.dumps, bare)))
    with pytest.raises(EditError, match="The score needs"):
        own.evaluate(subject, own.load(0).test)


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"edits": 1}, ShapeError, "2 edits or more"),
        ({"data": "facts.jsonl"}, DataError, "together"),
        ({"model": "SmolLM2-135M-Instruct"}, DataError, "together"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        EditFactsProblem(**settings)


def test_too_many_edits(problem: EditFactsProblem) -> None:
    with pytest.raises(DataError, match="asked for 5000 edits"):
        EditFactsProblem(edits=5000).load(0)


def test_a_facts_gpt_is_trained_and_written(tmp_path: Path, problem: EditFactsProblem) -> None:
    """A few steps: the loop, the tokenizer and the folder, not what is learnt."""
    said: list[str] = []
    recall = gpt.train(tmp_path / "made", steps=2, say=said.append)
    model, tokenizer = pretrained.load(tmp_path / "made", kind="causal")
    assert recall < 0.5
    assert said
    assert said[-1].startswith("step 2: loss ")
    assert sum(p.numel() for p in model.parameters()) < 2_000_000
    entity = entities()[0]
    assert tokenizer.decode(tokenizer(entity.sentence("director", 0))["input_ids"], skip_special_tokens=True) == entity.sentence(
        "director", 0
    )
    rows = gpt.Rows(entities(), tokenizer, 0)
    assert rows.batch(5).equal(rows.batch(5))
    assert not rows.batch(5).equal(rows.batch(6))
    assert all(len(ways) == 3 for kind in TEMPLATES.values() for ways in kind.values())
