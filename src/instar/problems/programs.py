"""Labelling sequences: the algorithmic tasks of Transformer Programs, questions of TREC, and a user's own tagged sentences."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from instar.catalogue import Build
from instar.errors import ShapeError
from instar.interfaces import Data, Examples, Items, Labeller, Monitor, Problem
from instar.lab.programs import corpora, tasks
from instar.problems.kept import digest


class Subject:
    """A labeller, and how long the longest sequence is, for its costs."""

    def __init__(self, labeller: Labeller) -> None:
        self.labeller = labeller


class ProgramsProblem(Problem):
    """accuracy = the share of labels that are right, and sequences whose labels are all right.

    Args:
        task: reverse, hist, double_hist, sort, most_freq, dyck1, dyck2, induction; trec (a question's class); or a file of
            tagged sentences (`lab.programs.corpora.tagged`).
        vocab, length: of an algorithmic task, special tokens counted; None takes the paper's. length is also the longest sentence
            of trec and of a file (30 where it is None).
        samples: different sequences, all splits together. batch: sequences a step.

    A method is judged by its final form: a program by its own answers, never by the sampler. All seeds have the same sequences,
    so that they pair over items. Raises ShapeError, UnknownNameError, and what reading data raises.
    """

    accepts: ClassVar = {Labeller: "labeller"}

    def __init__(
        self,
        *,
        task: str = "hist",
        vocab: int | None = None,
        length: int | None = None,
        samples: int = 20_000,
        batch: int = 512,
    ) -> None:
        if samples < 30 or batch < 1:
            raise ShapeError(f"programs expects 30 samples or more and a positive batch; received {samples} and {batch}.")
        self.task, self.vocab, self.length, self.samples, self.batch = task, vocab, length, samples, batch
        self.tokens_per_step = batch * (length or 8)

    def load(self, seed: int) -> Data:
        """The same sequences for every seed."""
        if self.task == "trec":
            train, valid, test = corpora.trec(self.length or corpora.LONGEST)
        elif self.task not in tasks.TASKS and Path(self.task).suffix:
            train, valid, test = corpora.tagged(Path(self.task), self.length or corpora.LONGEST)
        else:
            train, valid, test = tasks.generate(self.task, vocab=self.vocab, length=self.length, samples=self.samples)
        self.tokens_per_step = round(self.batch * sum(map(len, train.tokens)) / len(train))
        facts = {
            **{"name": self.task, "item": "sequence", "train_items": len(train)},
            **{"valid_items": len(valid), "test_items": len(test)},
            "accuracy_of_the_most_frequent_label": round(_floor(train, test), 4),
        }
        parts = [row for part in (train, valid, test) for rows in (part.tokens, part.labels) for row in rows]
        return Data(train, valid, test, digest(repr(list(row)) for row in parts), facts)

    def labeller(self, build: Build, data: Data, seed: int) -> Subject:
        """The method as it is built, before it learns."""
        made = build.cls(**build.arguments)
        assert isinstance(made, Labeller)
        self._valid: Examples = data.valid
        return Subject(made)

    def fit(
        self,
        subject: Subject,
        train: Examples,
        *,
        steps: int,
        seed: int,
        monitor: Monitor | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        """The method's own training; it chooses by the validation part, where it chooses."""
        subject.labeller.fit(train, self._valid, steps=steps, batch=self.batch, seed=seed, monitor=monitor, checkpoint=checkpoint)

    def evaluate(self, subject: Subject, split: Examples) -> dict[str, Items]:
        """Right labels, sequence by sequence."""
        right: list[float] = []
        asked: list[float] = []
        for said, labels in zip(subject.labeller.predict(split.tokens), split.labels, strict=True):
            pairs: list[Any] = [(a, b) for a, b in zip(said, labels, strict=True) if b is not None]
            right.append(float(sum(a == b for a, b in pairs)))
            asked.append(float(len(pairs)))
        whole = [float(a == b) for a, b in zip(right, asked, strict=True)]
        return {"accuracy": Items(right, asked), "sequences": Items(whole, [1.0] * len(whole))}


def _floor(train: Examples, test: Examples) -> float:
    """What the label that training has most of gets right."""
    seen = [label for row in train.labels for label in row if label is not None]
    most = max(sorted(set(seen)), key=seen.count)
    asked = [label for row in test.labels for label in row if label is not None]
    return asked.count(most) / len(asked)
