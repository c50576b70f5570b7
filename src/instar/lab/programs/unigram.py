"""The most frequent label of each token: what is known without looking at any other."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from instar.errors import DataError, ShapeError
from instar.interfaces import Examples, Labeller, Monitor
from instar.lab.programs.vocabulary import Vocabulary


class Unigram(Labeller):
    """argmax over labels of how often training gave it to this token; of a whole sequence, of the sum over its tokens' shares.

    A token that was never labelled gets the most frequent label. Of equally frequent labels the first in the alphabet is taken.

    Args:
        rare: as of `TransformerPrograms`. Nothing is learnt step by step, so that steps, batch and seed do not matter.
    """

    def __init__(self, *, rare: int = 0) -> None:
        if rare < 0:
            raise ShapeError(f"rare is 0 or more; received {rare}.")
        self.rare = rare
        self.vocabulary: Vocabulary | None = None
        self.shares: dict[str, list[float]] = {}

    def fit(
        self,
        train: Examples,
        valid: Examples,
        *,
        steps: int,
        batch: int,
        seed: int = 0,
        monitor: Monitor | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        """Count."""
        vocabulary = Vocabulary.of(train, valid, self.rare)
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        whole: Counter[str] = Counter()
        for tokens, labels in zip(train.tokens, train.labels, strict=True):
            for token, label in zip(tokens, [labels[0]] * len(tokens) if train.pooled else labels, strict=True):
                if label is not None:
                    counts[token if token in vocabulary.places else str(vocabulary.unknown)][label] += 1
                    whole[label] += 1
        self.shares = {}
        for token in vocabulary.tokens:
            row = counts[token] or whole
            self.shares[token] = [row[label] / row.total() for label in vocabulary.labels]
        self.vocabulary = vocabulary
        if monitor is not None:
            monitor(steps, 0.0)

    def predict(self, sequences: Sequence[Sequence[str]]) -> list[list[str]]:
        """Token by token."""
        vocabulary = self.vocabulary
        if vocabulary is None:
            raise DataError("Nothing was learnt yet: call fit first.")
        ids, _ = vocabulary.ids(sequences)
        found = []
        for sequence, row in zip(sequences, ids.tolist(), strict=True):
            shares = [self.shares[vocabulary.tokens[i]] for i in row[: len(sequence)]]
            if vocabulary.pooled:
                shares = [[sum(column) for column in zip(*shares, strict=True)]]
            found.append([vocabulary.labels[one.index(max(one))] for one in shares])
        return found

    def parameters(self) -> int:
        """Shares of labels."""
        return sum(map(len, self.shares.values()))
