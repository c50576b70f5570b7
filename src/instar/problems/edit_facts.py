"""Editing facts: what is said from now on, what is said in other words, and what is said of neighbours and of everything else."""

from __future__ import annotations

import hashlib
import inspect
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from instar.bench.seeds import derive
from instar.catalogue import Build
from instar.data import pretrained
from instar.data.facts import TEMPLATES, Entity, entities
from instar.editing import drift, facts, statistics
from instar.editing.evaluation import Evaluation, evaluate, harmonic
from instar.editing.located import Located
from instar.errors import DataError, EditError, ShapeError
from instar.interfaces import Data, Editor, Fact, Items, Monitor, Problem, Workload

MODEL = Path(__file__).with_name("edit_facts_model")
"""The facts-GPT that comes with the package (`instar.problems.edit_facts_gpt` trains it)."""
TRACED = [0, 1]
_NEIGHBOURS, _DRIFT_TEXTS = 5, 40


@dataclass(frozen=True)
class Split:
    """Facts to write, and texts that nothing of it should change."""

    facts: Sequence[Fact]
    elsewhere: Sequence[str]


class Edited:
    """A model, and the editor that will write into it."""

    def __init__(self, model: nn.Module, tokenizer: Any, editor: Editor) -> None:
        self.model, self.tokenizer, self.editor = model, tokenizer, editor


class EditFactsProblem(Problem):
    """Facts are written into a model, all at once, and it is asked for them; then the edit is undone.

    Args:
        data: a JSONL file of facts (`instar.editing.facts.read`); by default real films and countries, which the facts-GPT knows.
        model: any causal language model that `data.pretrained.load` finds; needed with `data`, and the facts-GPT without.
        edits: facts that are written at once, drawn by the seed.
        layers: that are edited; by default the ones that causal tracing chose for the facts-GPT, or the method's own.

    Of films and countries a fact's target is the answer of another subject, its paraphrases are the two other wordings, and its
    neighbours are subjects with the same answer, which the same edit leaves them. Facts for choosing settings and facts of the
    test are of different subjects.
    Raises DataError, and what reading facts and models raises.
    """

    accepts: ClassVar = {Editor: "edited"}
    tokens_per_step = 1

    def __init__(
        self, *, data: str | None = None, model: str | None = None, edits: int = 10, layers: Sequence[int] | None = None
    ) -> None:
        if edits < 2:
            raise ShapeError(f"edit_facts expects 2 edits or more; received {edits}.")
        if (data is None) != (model is None):
            raise DataError("Give data= (facts) and model= together: facts are written into a model that knows others.")
        self.data, self.model, self.edits, self.layers = data, model, edits, layers

    def load(self, seed: int) -> Data:
        """Train: texts that C is taken from. Valid, test: facts, and texts about other subjects."""
        if self.data is None:
            known = entities()
            halves = known[::2], known[1::2]
            valid, test = (_drawn(half, known, self.edits, seed) for half in halves)
            source, texts = "films and countries", _sentences(known)
            said = json.dumps(["neighbours stay", *texts])  # the rule by which facts are drawn is part of the data
        else:
            given = facts.read(self.data)
            if len(given) < 2 * self.edits:
                raise DataError(
                    f"{self.data} holds {len(given)} facts; half of them for choosing settings needs {2 * self.edits}."
                )
            source, said = Path(self.data).name, json.dumps([asdict(fact) for fact in given])
            held = statistics.default_texts()
            texts, elsewhere = held[_DRIFT_TEXTS:], [text[:500] for text in held[:_DRIFT_TEXTS]]
            valid, test = (
                Split(random.Random(derive(seed, "facts")).sample(list(half), self.edits), elsewhere)
                for half in (given[::2], given[1::2])
            )
        digest = hashlib.sha256(f"{self.edits} {said}".encode()).hexdigest()  # one for all seeds, which draw from these
        counts = {"train_items": len(texts), "valid_items": self.edits, "test_items": self.edits}
        return Data(texts, valid, test, digest, {"name": source, "item": "fact", **counts})

    def edited(self, build: Build, data: Data, seed: int) -> Edited:
        """The editor, told the layers and the texts that C is taken from where it asks for them."""
        known = inspect.signature(build.cls).parameters
        layers = (TRACED if self.model is None else None) if self.layers is None else list(self.layers)
        given = {name: value for name, value in {"layers": layers, "seed": seed}.items() if name in known and value is not None}
        editor = build.cls(**{**given, **build.arguments})
        assert isinstance(editor, Editor)
        return Edited(*pretrained.load(self.model or MODEL, kind="causal"), editor)

    def fit(
        self,
        subject: Edited,
        train: Sequence[str],
        *,
        steps: int,
        seed: int,
        monitor: Monitor | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        """Statistics of the texts, where the editor keeps some. There are no steps: an edit is part of the evaluation."""
        editor = subject.editor
        if isinstance(editor, Located) and hasattr(editor, "prefixes"):
            editor.fit_statistics(subject.model, subject.tokenizer, train)
        for step in sorted({max(1, steps - 1), steps}):  # twice, so that calibration sees a step that takes no time
            if monitor is not None:
                monitor(step, 0.0)

    def evaluate(self, subject: Edited, split: Split) -> dict[str, Items]:
        """Edit, ask, undo."""
        model, tokenizer = subject.model, subject.tokenizer
        with subject.editor.edit(model, tokenizer, split.facts) as receipt:
            found = evaluate(model, tokenizer, split.facts)
            moved = drift.moved(model, tokenizer, receipt, split.elsewhere)
        return {**_metrics(found), "drift": Items([m.divergence for m in moved], [float(m.tokens) for m in moved])}

    def workloads(self) -> Iterator[Workload]:
        """Writing the test's facts."""

        def prepare(subject: Edited) -> Callable[[], object]:
            split = self.load(0).test
            return lambda: subject.editor.edit(subject.model, subject.tokenizer, split.facts).undo()

        yield Workload("edit_seconds", prepare, units=self.edits)


def _metrics(found: Evaluation) -> dict[str, Items]:
    """By fact; the score, which no single fact has, is one item."""
    metrics: dict[str, Items] = {}
    for name, kind in (("efficacy", "rewrite"), ("generalisation", "paraphrase"), ("specificity", "neighbour")):
        for suffix, items in (("", found.success(kind)), ("_accuracy", found.accuracy(kind))):  # type: ignore[arg-type]
            if items is not None:
                metrics[name + suffix] = items
    kinds = [metrics[name].value for name in ("efficacy", "generalisation", "specificity") if name in metrics]
    if len(kinds) == 3:
        metrics["score"] = Items([harmonic(kinds)], [1.0])
    if "score" not in metrics:
        raise EditError("The score needs facts with `old`, `paraphrases` and `neighbours`; these lack one of them.")
    return metrics


def _drawn(half: Sequence[Entity], known: Sequence[Entity], edits: int, seed: int) -> Split:
    """So many facts about different subjects, and sentences about subjects that are neither edited nor neighbours."""
    draw = random.Random(derive(seed, "facts"))
    drawn: list[tuple[Fact, list[str]]] = []
    for entity in draw.sample(list(half), len(half)):
        if len(drawn) == edits:
            break
        found = _fact(entity, known, draw)
        if found is not None:
            drawn.append(found)
    if len(drawn) < edits:
        raise DataError(f"{len(drawn)} subjects have a fact with neighbours; asked for {edits} edits.")
    # A neighbour that the same edit rewrites has no answer to keep.
    rewritten = {fact.prompt for fact, _ in drawn}
    chosen = [
        replace(fact, neighbours=[p for p in dict.fromkeys([*fact.neighbours, *more]) if p not in rewritten][:_NEIGHBOURS])
        for fact, more in drawn
    ]
    touched = {fact.subject for fact in chosen}
    touched |= {e.name for e in known if any(e.name in prompt for fact in chosen for prompt in fact.neighbours)}
    others = [e for e in known if e.name not in touched]
    elsewhere = [_paragraph(e, draw) for e in draw.sample(others, min(_DRIFT_TEXTS, len(others)))]
    return Split(chosen, elsewhere)


def _fact(entity: Entity, known: Sequence[Entity], draw: random.Random) -> tuple[Fact, list[str]] | None:
    """A false answer in place of one that others share, and the prompts of all of those; None without such a relation."""
    for relation in draw.sample(sorted(entity.known), len(entity.known)):
        old = entity.known[relation]
        kin = [e for e in known if e.kind == entity.kind]
        same = [e for e in kin if e.known[relation] == old and e.name != entity.name]
        answers = sorted({e.known[relation] for e in kin} - {old})
        if len(same) >= 2 and answers:
            prompt, *paraphrases = entity.prompts(relation)
            asked = [e.prompts(relation)[0] for e in same]
            neighbours = draw.sample(asked, min(_NEIGHBOURS, len(asked)))
            return Fact(prompt, entity.name, draw.choice(answers), old, paraphrases, neighbours), asked
    return None


def _paragraph(entity: Entity, draw: random.Random) -> str:
    return " ".join(entity.sentence(r, draw.randrange(3)) for r in draw.sample(sorted(entity.known), len(entity.known)))


def _sentences(known: Sequence[Entity]) -> list[str]:
    """All that the facts-GPT learnt, in a random order."""
    texts = [e.sentence(r, t) for e in known for r in e.known for t in range(len(TEMPLATES[e.kind][r]))]
    random.Random(0).shuffle(texts)
    return texts
