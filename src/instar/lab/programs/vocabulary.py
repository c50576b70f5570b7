"""What indices stand for, and sequences as tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from instar.errors import DataError
from instar.interfaces import Examples

IGNORED = -100
UNKNOWN = "<unk>"


@dataclass(frozen=True)
class Vocabulary:
    """Tokens and labels by index."""

    tokens: tuple[str, ...]
    labels: tuple[str, ...]
    length: int
    """Of the longest sequence."""
    pooled: bool
    unknown: str | None = None
    """The token that stands for all others; None refuses them."""
    places: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "places", {token: i for i, token in enumerate(self.tokens)})

    @classmethod
    def of(cls, train: Examples, valid: Examples, rare: int = 0) -> Vocabulary:
        """Of training data, sorted; the longest sequence may be one of validation.

        rare: tokens seen at most so often in training become `<unk>`, and so does what was never seen; 0 refuses that. Raises
        DataError for data without sequences, two labels or a label for each token, and for validation data that hold others.
        """
        for name, part in (("training", train), ("validation", valid)):
            _check(part, name)
        seen = Counter(token for row in train.tokens for token in row)
        tokens = sorted(token for token, count in seen.items() if count > rare)
        if rare and UNKNOWN not in tokens:
            tokens.append(UNKNOWN)
        labels = sorted({label for row in train.labels for label in row if label is not None})
        if len(labels) < 2:
            raise DataError(f"The training examples have {len(labels)} label: there is nothing to tell apart.")
        known = set(labels)
        if new := sorted({label for row in valid.labels for label in row if label is not None and label not in known}):
            raise DataError(f"The validation examples have labels that training has not: {', '.join(map(repr, new[:5]))}.")
        length = max(len(row) for part in (train, valid) for row in part.tokens)
        return cls(tuple(tokens), tuple(labels), length, train.pooled, UNKNOWN if rare else None)

    def ids(self, sequences: Sequence[Sequence[str]]) -> tuple[Tensor, Tensor]:
        """Ids and mask [B, longest]; padding is on the right. Raises DataError for what cannot be read."""
        longest = max(map(len, sequences), default=0)
        ids = torch.zeros(len(sequences), longest, dtype=torch.int64)
        mask = torch.zeros(len(sequences), longest, dtype=torch.bool)
        spare = None if self.unknown is None else self.places[self.unknown]
        for row, sequence in enumerate(sequences):
            if isinstance(sequence, str) or not 1 <= len(sequence) <= self.length:
                what = f"the text {sequence[:40]!r}" if isinstance(sequence, str) else f"{len(sequence)} tokens"
                raise DataError(f"Sequence {row} is {what}; expected is a list of 1 to {self.length} tokens.")
            found = [self.places.get(token, spare) for token in sequence]
            if None in found:
                token = sequence[found.index(None)]
                raise DataError(
                    f"Sequence {row} has the token {token!r}, which was not in the training data. Known are "
                    f"{', '.join(map(repr, self.tokens[:20]))}{', …' if len(self.tokens) > 20 else ''}; with rare=1 or more, "
                    "rare and new tokens are learnt as one."
                )
            ids[row, : len(sequence)] = torch.tensor(found)
            mask[row, : len(sequence)] = True
        return ids, mask

    def targets(self, examples: Examples) -> Tensor:
        """Classes [B, longest], or [B] where pooled; IGNORED where nothing is asked."""
        places = {label: i for i, label in enumerate(self.labels)} | {None: IGNORED}
        if self.pooled:
            return torch.tensor([places[row[0]] for row in examples.labels])
        found = torch.full((len(examples), max(map(len, examples.tokens))), IGNORED)
        for row, labels in enumerate(examples.labels):
            found[row, : len(labels)] = torch.tensor([places[label] for label in labels])
        return found


def _check(part: Examples, name: str) -> None:
    if not len(part):
        raise DataError(f"There are no {name} examples.")
    if len(part.labels) != len(part.tokens):
        raise DataError(f"The {name} examples have {len(part.tokens)} sequences and labels for {len(part.labels)}.")
    for row, (tokens, labels) in enumerate(zip(part.tokens, part.labels, strict=True)):
        if isinstance(tokens, str):
            raise DataError(f"Sequence {row} of the {name} examples is the text {tokens[:40]!r}; give a list of tokens.")
        wanted = 1 if part.pooled else len(tokens)
        if not tokens or len(labels) != wanted:
            raise DataError(
                f"Sequence {row} of the {name} examples has {len(tokens)} tokens and {len(labels)} labels; expected are tokens, "
                f"and {'one label' if part.pooled else 'a label (or None) for each'}."
            )
