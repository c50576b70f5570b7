"""ListOps: the value of a nested list of operations on digits (Nangia & Bowman 2018, arXiv 1804.06028)."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray
from torch import nn

from instar.bench.fit import Precision
from instar.bench.seeds import stream
from instar.data import listops
from instar.errors import ShapeError
from instar.interfaces import Data, Floor
from instar.problems.sequence_classes import SequenceClassesProblem, Sequences


class ListopsProblem(SequenceClassesProblem):
    """`[MAX 2 9 [MIN 4 7 ] 0 ]` is 9: sequences of the Long Range Arena's grammar (Tay et al. 2020, 2011.04006) in ten classes.

    MIN and MAX, MED (the median, rounded down) and SM (the sum modulo 10); an opening bracket is one token with its operator, the
    closing one a token of its own, which stays.

    Args:
        tree_depth, args: of the grammar, see `data.listops.rows`. shortest, longest: tokens of a sequence.
        train_items, valid_items, test_items: how many, all of them different.
        batch, width, depth, heads, lr, precision: see `SequenceClassesProblem`.

    The arena itself has tree_depth=10, args=10, 500 to 2000 tokens and 96,000 training sequences (preset `arena`). All seeds have
    the same data, so that they pair over items. Raises ShapeError, and DataError where the grammar hardly makes such lengths.
    """

    def __init__(
        self,
        *,
        tree_depth: int = 6,
        args: int = 5,
        shortest: int = 32,
        longest: int = 256,
        train_items: int = 20_000,
        valid_items: int = 2_000,
        test_items: int = 2_000,
        batch: int = 32,
        width: int = 64,
        depth: int = 2,
        heads: int = 4,
        lr: float = 2e-3,
        precision: Precision = "float32",
    ) -> None:
        if tree_depth < 2 or args < 2 or not 4 <= shortest <= longest or min(train_items, valid_items, test_items) < 1:
            raise ShapeError(
                "listops expects tree_depth and args of 2 or more, 4 ≤ shortest ≤ longest and an item in each split; received "
                f"tree_depth={tree_depth}, args={args}, shortest={shortest}, longest={longest}, "
                f"items={train_items}, {valid_items}, {test_items}."
            )
        super().__init__(
            classes=10,
            length=longest,
            batch=batch,
            width=width,
            depth=depth,
            heads=heads,
            lr=lr,
            precision=precision,
        )
        self.tree_depth, self.args, self.shortest, self.longest = tree_depth, args, shortest, longest
        self.sizes = (train_items, valid_items, test_items)

    def embedding(self) -> nn.Embedding:
        """A vector for each symbol."""
        return nn.Embedding(len(listops.SYMBOLS), self.width)

    def load(self, seed: int) -> Data:
        """The same sequences for every seed."""
        rows, values = listops.rows(
            sum(self.sizes),
            tree_depth=self.tree_depth,
            args=self.args,
            shortest=self.shortest,
            longest=self.longest,
            generator=stream(0, "listops"),
        )
        ends = list(itertools.accumulate(self.sizes, initial=0))
        train, valid, test = (Sequences(rows[a:b], values[a:b]) for a, b in itertools.pairwise(ends))
        return self.splits("generated lists", "sequence", train, valid, test)

    def floors(self, data: Data) -> dict[str, Floor]:
        """The commonest value in training among lists with the same first operator, with or without a 0, with or without a 9."""
        seen = np.zeros((len(listops.SYMBOLS), 2, 2, self.classes))
        np.add.at(seen, (*_surface(data.train), data.train.labels), 1)
        named = seen.argmax(-1)[_surface(data.test)]
        what = "naming values by the first operator and by whether 0 and 9 occur anywhere"
        return {"accuracy": Floor(float((named == data.test.labels).mean()), what)}


def _surface(split: Sequences) -> tuple[NDArray[np.int64], ...]:
    """What can be told of a list without its nesting: the first symbol, whether 0 occurs, whether 9 does."""
    return tuple(np.array([(row[0], 0 in row, 9 in row) for row in split.rows], dtype=np.int64).T)
