"""Images read pixel by pixel: the "image" task of the Long Range Arena (Tay et al. 2020, arXiv 2011.04006), on digits."""

from __future__ import annotations

import torch
from torch import nn

from instar.bench.fit import Precision
from instar.bench.seeds import stream
from instar.data.images import images
from instar.errors import DataError
from instar.interfaces import Data
from instar.problems.sequence_classes import SequenceClassesProblem, Sequences

_GREYS = 256
_MOST = 2000  # test items
_LEAST = 20


class PixelsProblem(SequenceClassesProblem):
    """A grey image, row by row from the top left, is a sequence of tokens: one a pixel, its grey value.

    Nothing tells the classifier that pixels lie in two dimensions, so that it must find by itself that those above one another
    belong together.

    Args:
        data: None for scikit-learn's digits (64 tokens), mnist (784 tokens), or an `.npz` file with `images`, uint8
            [N, height, width], and `labels`, integers [N]; see `data.images`.
        batch, width, depth, heads, lr, precision: see `SequenceClassesProblem`.

    A fifth of the images is the test split, a tenth the validation split (at most 2,000 and 1,000), drawn once for all seeds; the
    writers of digits are not kept apart. Raises ShapeError, DataError, MissingExtraError.
    """

    def __init__(
        self,
        *,
        data: str | None = None,
        batch: int = 32,
        width: int = 64,
        depth: int = 2,
        heads: int = 4,
        lr: float = 2e-3,
        precision: Precision = "float32",
    ) -> None:
        super().__init__(
            classes=10,
            length=64,
            batch=batch,
            width=width,
            depth=depth,
            heads=heads,
            lr=lr,
            precision=precision,
        )
        self.data = data

    def embedding(self) -> nn.Embedding:
        """A vector for each grey value."""
        return nn.Embedding(_GREYS, self.width)

    def load(self, seed: int) -> Data:
        """The same split for every seed."""
        found = images(self.data)
        rows, count = found.pixels.reshape(len(found.pixels), -1), len(found.pixels)
        if count < _LEAST:
            raise DataError(f"{found.name}: {count} images are too few for three splits; {_LEAST} are the least.")
        self.classes = len(found.classes)
        order = torch.randperm(count, generator=stream(0, "pixels")).numpy()
        test, valid = min(_MOST, count // 5), min(_MOST // 2, count // 10)
        splits = [
            Sequences(list(rows[part]), found.labels[part])
            for part in (order[test + valid :], order[test : test + valid], order[:test])
        ]
        return self.splits(found.name, "image", *splits)
