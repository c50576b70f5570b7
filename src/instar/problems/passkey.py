"""A key that is told somewhere in real text and asked for at its end: retrieval and perplexity, each for itself.

Mohtashami & Jaggi 2023, "Landmark Attention" (arXiv 2305.16300), whose filler repeats a sentence; here it is text.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.bench.fit import Precision, fit
from instar.bench.seeds import stream
from instar.catalogue import Build
from instar.data.blocks import Blocks
from instar.errors import DataError, ShapeError
from instar.interfaces import Data, Items, Mixer, Monitor, Problem
from instar.problems.kept import digest
from instar.problems.language import Subject, device_of, evaluating
from instar.problems.text import BOS, VOCABULARY, TextProblem

TOLD, ASKED = b"\nThe key is %s.\n", b"\nThe key is "
DIGITS = 5
FRAME = len(TOLD) - 2 + len(ASKED) + 2 * DIGITS
"""Bytes of a row that are no text: the key as it is told, the question, and the answer."""
LENGTHS = {"half": 0.5, "full": 1.0, "double": 2.0}
"""Of rows, over T."""
CONDITIONS = {"half": "T/2", "full": "T", "double": "2T"}
DEPTHS = (0, 25, 50, 75, 100)
_EVALUATION_ROWS = 50


@dataclass(frozen=True)
class Rows:
    """Bytes [N, L]; the last five are the key, and `text` bool [N, L] is True at those of the text around it."""

    bytes: Tensor
    text: Tensor


class PasskeyProblem(Problem):
    """exact_match = the share of rows whose five digits are all found; bits_per_byte = −(1/n) Σ log2 p over the text around.

    A row is text with "The key is 48213." put in at a depth (0 % is its beginning) and "The key is 48213" at its end. The answer
    counts if every digit is the likeliest one behind those before it, which is what greedy decoding would write. Both
    figures come from the same rows, by cells of a grid: T/2, T and 2T bytes; 0, 25, 50, 75 and 100 % deep.

    Args:
        data: as for `text`. length: T, bytes of the longest row in training. batch: rows a step.
        width, depth, heads: of the decoder. lr: peak learning rate. precision: float32 or bf16.
        test_rows: of every cell, in the validation and in the test split.

    Training rows have T/2 to T bytes, the key at any depth; the loss is nats per byte of all but the answer, plus nats per digit
    of the answer, which would otherwise be lost among the text. Raises DataError, ShapeError.
    """

    accepts: ClassVar = {Mixer: "decoder"}

    def __init__(
        self,
        *,
        data: str | list[str] | None = None,
        length: int = 128,
        batch: int = 16,
        width: int = 64,
        depth: int = 2,
        heads: int = 4,
        lr: float = 3e-3,
        precision: Precision = "float32",
        test_rows: int = 50,
    ) -> None:
        if min(batch, width, depth, heads, test_rows) < 1 or length // 2 <= FRAME:
            raise ShapeError(
                f"passkey expects positive sizes and length > {2 * FRAME + 1} (half of it must hold more than the key); received "
                f"length={length}, batch={batch}, width={width}, depth={depth}, heads={heads}, test_rows={test_rows}."
            )
        self.data, self.length, self.batch, self.width, self.depth, self.heads = data, length, batch, width, depth, heads
        self.lr, self.precision, self.test_rows = lr, precision, test_rows
        self.tokens_per_step = batch * (length // 2 + length) // 2

    def load(self, seed: int) -> Data:
        """The same rows for every seed, so that seeds pair over items; training rows are made as they are needed."""
        text = TextProblem(data=self.data).load(seed)
        splits = {name: self._grid(part, name) for name, part in (("valid", text.valid), ("test", text.test))}
        cells = len(LENGTHS) * len(DEPTHS) * self.test_rows
        facts = {
            **{"name": text.facts["name"], "item": "row", "train_items": None, "valid_items": cells, "test_items": cells},
            "chance": 10.0**-DIGITS,
        }
        parts = [rows.bytes.numpy() for split in splits.values() for rows in split.values()]
        return Data(text.train, splits["valid"], splits["test"], digest([text.sha256, *parts]), facts)

    def _grid(self, text: Blocks, name: str) -> dict[str, Rows]:
        found = {}
        for (word, factor), depth in itertools.product(LENGTHS.items(), DEPTHS):
            generator = stream(0, f"{name}/{word}/{depth}")
            depths = torch.full((self.test_rows,), depth / 100, dtype=torch.float64)
            found[f"{word}@{depth}"] = rows(text, int(factor * self.length), depths, generator)
        return found

    def decoder(self, build: Build, data: Data, seed: int) -> Subject:
        """The mixer in a small decoder."""
        return Subject(build, vocabulary=VOCABULARY, width=self.width, depth=self.depth, heads=self.heads)

    def fit(
        self,
        subject: Subject,
        train: Blocks,
        *,
        steps: int,
        seed: int,
        monitor: Monitor | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        """Fresh rows at every step, all of one length."""

        def batch(index: int) -> Tensor:
            generator = stream(seed, f"data/{index}")
            length = int(torch.randint(self.length // 2, self.length + 1, (), generator=generator))
            return rows(train, length, torch.rand(self.batch, generator=generator, dtype=torch.float64), generator).bytes

        def loss(model: nn.Module, given: Tensor) -> Tensor:
            nats, _ = _ask(model, given)
            return nats[:, :-DIGITS].mean() + nats[:, -DIGITS:].mean()

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

    def evaluate(self, subject: Subject, split: dict[str, Rows]) -> dict[str, Items]:
        """Keys by cell and over the cells of T/2 and T; bits of the text by length."""
        right: dict[str, list[float]] = {}
        bits: dict[str, list[float]] = {word: [] for word in LENGTHS}
        weights: dict[str, list[float]] = {word: [] for word in LENGTHS}
        with evaluating(subject):
            for cell, given in split.items():
                word, right[cell] = cell.partition("@")[0], []
                for part, text in zip(given.bytes.split(_EVALUATION_ROWS), given.text.split(_EVALUATION_ROWS), strict=True):
                    nats, hit = _ask(subject, part)
                    right[cell] += hit[:, -DIGITS:].all(1).double().tolist()
                    bits[word] += ((nats.cpu() * text).double().sum(1) / math.log(2)).tolist()
                    weights[word] += text.double().sum(1).tolist()
        trained = [value for cell, values in right.items() if not cell.startswith("double") for value in values]
        found = {"exact_match": Items(trained, [1.0] * len(trained))}
        found |= {f"bits_per_byte@{CONDITIONS[word]}": Items(bits[word], weights[word]) for word in LENGTHS}
        return found | {f"exact_match_{cell}": Items(values, [1.0] * len(values)) for cell, values in right.items()}

    def costs(self, subject: Subject) -> dict[str, float]:
        """Closed forms at T bytes: training is counted as three forward passes."""
        forward, cost = subject.forward_flops(self.length), subject.layer_cost(self.length)
        if forward is None or cost is None:
            return {}
        return {"train_flops_per_token": 3 * forward / self.length, "state_bytes": self.depth * cost[1]}


def rows(text: Blocks, length: int, depths: Tensor, generator: torch.Generator) -> Rows:
    """A row of `length` bytes for each depth [N] in 0 to 1; the text is drawn from the blocks that are long enough.

    Raises DataError where no block is.
    """
    around = length - FRAME
    fitting = np.flatnonzero(text.length >= around)
    if not len(fitting):
        raise DataError(f"No block of the text holds the {around} bytes that a row of {length} needs around its key.")
    draw = torch.rand(len(depths), 2, generator=generator, dtype=torch.float64).tolist()
    keys = torch.randint(10**DIGITS, (len(depths),), generator=generator).tolist()
    found, mask = [], torch.zeros(len(depths), length, dtype=torch.bool)
    for n, (depth, (which, where), key) in enumerate(zip(depths.tolist(), draw, keys, strict=True)):
        block = text[int(fitting[int(which * len(fitting))])]
        start = int(where * (len(block) - around + 1))
        stretch, place, digits = block[start : start + around].tobytes(), round(depth * around), b"%05d" % key
        told = TOLD % digits
        found.append(np.frombuffer(stretch[:place] + told + stretch[place:] + ASKED + digits, dtype=np.uint8))
        mask[n, :place] = mask[n, place + len(told) : around + len(told)] = True
    return Rows(torch.from_numpy(np.stack(found)).to(torch.int64), mask)


def _ask(model: nn.Module, given: Tensor) -> tuple[Tensor, Tensor]:
    """−log p of each byte behind BOS [N, L], and whether it is the likeliest."""
    given = given.to(device_of(model))
    logits, _ = model(torch.cat([torch.full_like(given[:, :1], BOS), given[:, :-1]], 1))
    nats = F.cross_entropy(logits.flatten(0, 1).float(), given.flatten(), reduction="none").view(given.shape)
    return nats, logits.argmax(-1) == given
