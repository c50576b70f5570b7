"""Multi-query associative recall: what perplexity hides (Arora et al. 2023, "Zoology", arXiv 2312.04927)."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.bench.fit import Precision, fit
from instar.bench.seeds import stream
from instar.catalogue import Build
from instar.errors import ShapeError
from instar.interfaces import Data, Floor, Items, Mixer, Monitor, Problem
from instar.problems.language import Subject, device_of, evaluating

IGNORED = -100
_EVALUATION_ROWS = 250
_FLOOR_ROWS = 20_000


class RecallProblem(Problem):
    """A row lists key-value pairs, then shows each key again at a random later place: the answer is the key's value.

    Accuracy is over the queries. Keys are the first half of the vocabulary, values the second, token 0 fills the rest; the
    distances from pair to query follow Zoology's power law (exponent 0.01 − 1), so most are short and some are long.

    Args:
        vocab: tokens. pairs: key-value pairs in a row. length: tokens in a row, even, ≥ 4 · pairs. batch: rows a step.
        width, depth, heads: of the decoder. lr: peak learning rate. precision: float32 or bf16.
        test_sequences: rows in the validation and in the test split; an item is a row.

    Chance is one of the values in the vocabulary: 2 / vocab; the floor is higher, since a row shows few values. Training rows are
    made from the seed; validation and test rows are the same for all seeds, so that seeds pair over items.
    """

    accepts: ClassVar = {Mixer: "decoder"}

    def __init__(
        self,
        *,
        vocab: int = 64,
        pairs: int = 4,
        length: int = 32,
        batch: int = 64,
        width: int = 64,
        depth: int = 2,
        heads: int = 2,
        lr: float = 3e-3,
        precision: Precision = "float32",
        test_sequences: int = 500,
    ) -> None:
        if min(vocab, pairs, length, batch, width, depth, heads, test_sequences) < 1:
            raise ShapeError("recall expects positive sizes.")
        if length % 2 or length < 4 * pairs or vocab // 2 - 1 < pairs:
            raise ShapeError(
                "recall expects an even length ≥ 4 · pairs and a vocabulary of at least 2 · (pairs + 1); "
                f"received length={length}, pairs={pairs}, vocab={vocab}."
            )
        self.vocab, self.pairs, self.length, self.batch, self.width = vocab, pairs, length, batch, width
        self.depth, self.heads, self.lr, self.precision, self.test_sequences = depth, heads, lr, precision, test_sequences
        self.tokens_per_step = batch * length

    def load(self, seed: int) -> Data:
        """Rows for validation and test from streams of their own; training rows are made as they are needed."""
        facts = {
            "name": "generated key-value pairs",
            "item": "sequence",
            "train_items": None,
            "valid_items": self.test_sequences,
            "test_items": self.test_sequences,
            "chance": 2 / self.vocab,
        }
        # The hash is that of the recipe.
        splits = {name: self.rows(self.test_sequences, stream(0, name)) for name in ("valid", "test")}
        digest = f"recall/1/{self.vocab}/{self.pairs}/{self.length}/{self.test_sequences}"
        return Data(None, splits["valid"], splits["test"], digest, facts)

    def rows(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Inputs and targets [count, length]; the target is ignored except at queries."""
        N, half = self.pairs, self.vocab // 2
        keys = 1 + torch.rand(count, half - 1, generator=generator).argsort(1)[:, :N]
        values = half + torch.randint(self.vocab - half, (count, N), generator=generator)
        space = (self.length - 2 * N) // 2  # places for queries, two tokens apart
        weight = torch.arange(1, space + 1, dtype=torch.float64) ** (0.01 - 1)
        places = torch.multinomial(weight.expand(count, space), N, generator=generator)  # distinct for each query
        inputs = torch.zeros(count, self.length, dtype=torch.int64)
        targets = torch.full_like(inputs, IGNORED)
        inputs[:, 0 : 2 * N : 2], inputs[:, 1 : 2 * N : 2] = keys, values
        at = 2 * N + 2 * places
        inputs.scatter_(1, at, keys)
        targets.scatter_(1, at, values)
        return inputs, targets

    def floors(self, data: Data) -> dict[str, Floor]:
        """The value in a row that a query at this place is likeliest to ask for, whatever its key: nothing is looked up."""
        N = self.pairs
        pair, row, place = self._asked(*self.rows(_FLOOR_ROWS, stream(0, "floor")))
        likely = torch.zeros(self.length, N, dtype=torch.float64).index_put_(
            (place, pair), torch.ones(1).double(), accumulate=True
        )
        inputs, targets = data.test
        _, row, place = self._asked(inputs, targets)
        values = inputs[row, 1 : 2 * N : 2]
        together = (values.unsqueeze(2) == values.unsqueeze(1)).double() @ likely[place].unsqueeze(2)  # pairs may share a value
        named = values.gather(1, together.argmax(1)).squeeze(1)
        share = (named == targets[row, place]).double().mean().item()
        return {"accuracy": Floor(share, "naming the value that is likeliest at the query's place, whatever its key")}

    def _asked(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of each query its pair, its row and its place."""
        row, place = (targets != IGNORED).nonzero(as_tuple=True)
        keys = inputs[row, 0 : 2 * self.pairs : 2]
        return (keys == inputs[row, place].unsqueeze(1)).int().argmax(1), row, place

    def decoder(self, build: Build, data: Data, seed: int) -> Subject:
        """The mixer in a small decoder."""
        return Subject(build, vocabulary=self.vocab, width=self.width, depth=self.depth, heads=self.heads)

    def fit(
        self,
        subject: Subject,
        train: None,
        *,
        steps: int,
        seed: int,
        monitor: Monitor | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        """Fresh rows at every step; loss in nats per query."""

        def batch(index: int) -> tuple[Tensor, Tensor]:
            return self.rows(self.batch, stream(seed, f"data/{index}"))

        def loss(model: nn.Module, rows: tuple[Tensor, Tensor]) -> Tensor:
            inputs, targets = (part.to(device_of(model)) for part in rows)
            logits, _ = model(inputs)
            return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED)

        fit(
            subject,
            batch,
            loss,
            steps=steps,
            lr=self.lr,
            precision=self.precision,
            seed=seed,
            monitor=monitor,
            checkpoint=checkpoint,
        )

    def evaluate(self, subject: Subject, split: tuple[Tensor, Tensor]) -> dict[str, Items]:
        """Right answers of every row."""
        right: list[float] = []
        weights: list[float] = []
        with evaluating(subject):
            for inputs, targets in zip(*(part.split(_EVALUATION_ROWS) for part in split), strict=True):
                targets = targets.to(device_of(subject))
                answers = subject(inputs.to(targets.device))[0].argmax(-1)
                right += ((answers == targets) & (targets != IGNORED)).sum(1).double().tolist()
                weights += (targets != IGNORED).sum(1).double().tolist()
        return {"accuracy": Items(right, weights)}

    def costs(self, subject: Subject) -> dict[str, float]:
        """Closed forms: training is counted as three forward passes."""
        forward, cost = subject.forward_flops(self.length), subject.layer_cost(self.length)
        if forward is None or cost is None:
            return {}
        return {"train_flops_per_token": 3 * forward / self.length, "state_bytes": self.depth * cost[1]}
