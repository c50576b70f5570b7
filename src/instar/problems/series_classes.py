"""Time series sorted into classes: several channels, unequal lengths, the archives' own training and test sets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import nn

from instar.bench.fit import Precision
from instar.data.series import Series, SeriesSet, held_out, series
from instar.errors import DataError
from instar.interfaces import Data
from instar.problems.scaling import scaled
from instar.problems.sequence_classes import SequenceClassesProblem, Sequences

_DEFAULT = "JapaneseVowels"
_VALID = 0.2


class SeriesClassesProblem(SequenceClassesProblem):
    """A series is a sequence of frames, the values of all channels at one time; its class is to be named.

    Args:
        data: a set that ships inside the package aeon (`data.series.names()`; None for JapaneseVowels); a table of your own with
            the columns unique_id, ds, label and one for each channel (`data.series_table.table`); or [TRAIN.ts, TEST.ts].
        batch, width, depth, heads, lr, precision: see `SequenceClassesProblem`.

    The test set is the archive's. A fifth of each class of its training set is the validation split; what is left is trained on,
    and each channel has mean 0 and variance 1 there. A missing value is the last one before it in its series, and where there is
    none the channel's mean. Raises ShapeError, DataError, UnknownNameError, MissingExtraError.
    """

    def __init__(
        self,
        *,
        data: str | list[str] | None = None,
        batch: int = 16,
        width: int = 64,
        depth: int = 2,
        heads: int = 4,
        lr: float = 2e-3,
        precision: Precision = "float32",
    ) -> None:
        super().__init__(
            classes=2,
            length=1,
            batch=batch,
            width=width,
            depth=depth,
            heads=heads,
            lr=lr,
            precision=precision,
        )
        self.data, self.channels = data, 1

    def embedding(self) -> nn.Linear:
        """A linear map of the channels."""
        return nn.Linear(self.channels, self.width)

    def load(self, seed: int) -> Data:
        """The same split for every seed."""
        found = series(_DEFAULT if self.data is None else self.data)
        if len(set(found.train.labels.tolist())) < 2:
            raise DataError(f"{found.name}: all training series are of one class; there is nothing to tell apart.")
        kept, valid = held_out(found.train.labels, [str(place) for place in range(len(found.train))], _VALID)
        if not valid:
            raise DataError(f"{found.name}: no class has two training series, so that none is left for validation.")
        parts = [found.train.at(kept), found.train.at(valid), found.test]
        self.classes, self.channels = len(found.classes), len(found.channels)
        data = self.splits(found.name, "series", *_normalised(found, parts))
        missing = sum(int(np.isnan(frame).sum()) for part in parts for frame in part.frames)
        shortest = min(len(frame) for part in parts for frame in part.frames)
        facts = {"channels": self.channels, "least_tokens": shortest, "missing_values": missing}
        return Data(data.train, data.valid, data.test, data.sha256, {**data.facts, **facts})


def _normalised(found: SeriesSet, parts: Sequence[Series]) -> list[Sequences]:
    """Float32 frames without gaps, in units of the first part's mean and deviation."""
    frames = [frame for part in parts for frame in part.frames]
    made = iter(scaled(found.name, "channel", found.channels, parts[0].frames, frames))
    return [Sequences([_filled(next(made)) for _ in part.frames], part.labels) for part in parts]


def _filled(frames: np.ndarray) -> np.ndarray:
    """The last value that there is; 0, the mean, before the first."""
    known = np.where(np.isnan(frames), 0, np.arange(1, len(frames) + 1)[:, None])
    last = np.maximum.accumulate(known, axis=0)
    padded = np.concatenate([np.zeros((1, frames.shape[1]), frames.dtype), frames])
    return np.take_along_axis(padded, last, axis=0)
