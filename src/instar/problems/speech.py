"""Spoken words by speakers who were never heard: accuracy, and how soon it is there while the word is still arriving.

Warden 2018, "Speech Commands" (arXiv 1804.03209), is the task; the default is the Free Spoken Digit Dataset.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from instar.bench.fit import Precision
from instar.bench.seeds import stream
from instar.data.log_mel import log_mel
from instar.data.speech import RATE, Recordings, recordings
from instar.errors import DataError, ShapeError
from instar.interfaces import Data, Items
from instar.mixers.lif import LIF
from instar.problems.sequence_classes import Batch, SequenceClassesProblem, SequenceClassifier, Sequences

BANDS = 40
SEEN = (10, 20, 30, 40, 50)
"""Frames after which accuracy is read, beside that of whole recordings; n of them span (n − 1) · 10 + 32 ms."""
_LEAST = 30  # recordings
_MASKED = 0.2  # of the frames and of the bands: the widest stretch that training does not see


class SpeechProblem(SequenceClassesProblem):
    """accuracy = the share of recordings whose word is named; accuracy@n = the same from the first n frames alone.

    A frame reads 32 ms and begins 10 ms after the one before, so that the first n end after (n − 1) · 10 + 32 ms.

    A recording is a row of log-mel frames in 40 bands, less the mean and over twice the deviation of the training split. No
    speaker is in two splits: a third of them is for the test, a sixth for validation, drawn once for all seeds. In training a
    stretch of frames and one of bands, each up to a fifth, are hidden in every recording (Park et al. 2019, arXiv 1904.08779).

    Args:
        data: None for spoken digits (`data.speech`; to be fetched once), or a folder or .zip of wav files: LABEL/NAME.wav, or
            LABEL_SPEAKER_NUMBER.wav. Other rates are resampled to 8 kHz, channels averaged; where nothing tells speakers, or
            there are fewer than three, recordings are drawn instead, and the facts say so.
        frames: of a recording, the most that are read. batch, width, depth, heads, lr, precision: see `SequenceClassesProblem`.

    Raises ShapeError, and DataError for files that do not fit.
    """

    def __init__(
        self,
        *,
        data: str | None = None,
        frames: int = 100,
        batch: int = 32,
        width: int = 64,
        depth: int = 2,
        heads: int = 4,
        lr: float = 2e-3,
        precision: Precision = "float32",
    ) -> None:
        if frames < 1:
            raise ShapeError(f"speech reads 1 frame or more; received frames={frames}.")
        super().__init__(
            classes=10,
            length=frames,
            batch=batch,
            width=width,
            depth=depth,
            heads=heads,
            lr=lr,
            precision=precision,
        )
        self.data, self.frames = data, frames

    def embedding(self) -> nn.Linear:
        """A linear map of the bands."""
        return nn.Linear(BANDS, self.width)

    def load(self, seed: int) -> Data:
        """The same split for every seed."""
        found = recordings(self.data)
        if len(found.waves) < _LEAST:
            raise DataError(f"{found.name}: {len(found.waves)} recordings are too few for three splits; {_LEAST} are the least.")
        self.classes = len(found.classes)
        rows = [log_mel(wave, RATE, BANDS)[: self.frames] for wave in found.waves]
        parts, facts = divided(found)
        heard = np.concatenate([rows[i] for i in parts[0]])
        mean, scale = float(heard.mean()), 2 * max(float(heard.std()), 1e-6)
        rows = [((row - mean) / scale).astype(np.float32) for row in rows]
        splits = [Sequences([rows[i] for i in part], found.labels[part]) for part in parts]
        lost = sorted({found.classes[label] for label in found.labels} - {found.classes[label] for label in splits[0].labels})
        if lost:
            who, more = ("nobody", "speakers") if facts["speaker_disjoint"] else ("no recording", "of each word")
            raise DataError(f"{found.name}: {who} in the training split says {', '.join(lost)}; record more {more}.")
        loaded = self.splits(found.name, "recording", *splits)
        return Data(loaded.train, loaded.valid, loaded.test, loaded.sha256, {**loaded.facts, **facts, **found.facts})

    def seen(self, given: Batch, generator: torch.Generator) -> Batch:
        """A stretch of frames and one of bands at the mean of the data, another one in each recording."""
        frames, mask, labels = given
        lengths = torch.full((len(frames),), frames.shape[1]) if mask is None else mask.sum(1)
        hidden = _stretch(lengths, frames.shape[1], generator).unsqueeze(2)
        hidden = hidden | _stretch(torch.full_like(lengths, BANDS), BANDS, generator).unsqueeze(1)
        return frames.masked_fill(hidden, 0.0), mask, labels

    def evaluate(self, subject: SequenceClassifier, split: Sequences) -> dict[str, Items]:
        """Whole recordings, and what is said of their first frames; of spiking networks also the share of neurons that fire."""
        with _Counted(subject) as counted:
            found = super().evaluate(subject, split)
        if counted.neurons:
            found["firing_rate"] = Items([counted.spikes], [counted.neurons])
        for n in SEEN:
            begun = Sequences([row[:n] for row in split.rows], split.labels)
            found[f"accuracy@{n}"] = super().evaluate(subject, begun)["accuracy"]
        return found


def divided(found: Recordings) -> tuple[list[NDArray[np.int64]], dict[str, object]]:
    """Places of the training, validation and test recordings, and what there is to say of the split."""
    speakers = found.speakers
    names = [] if speakers is None else sorted(set(speakers))
    by_speaker = speakers is not None and len(names) >= 3
    groups: Sequence[object] = speakers if by_speaker and speakers is not None else range(len(found.waves))
    kinds = sorted(set(groups), key=str) if by_speaker else list(groups)
    order = [kinds[i] for i in torch.randperm(len(kinds), generator=stream(0, "speech")).tolist()]
    test, valid = max(1, len(kinds) // 3), max(1, len(kinds) // 6)
    chosen = [set(order[test + valid :]), set(order[:valid]), set(order[valid : test + valid])]
    parts = [np.array([i for i, group in enumerate(groups) if group in part], dtype=np.int64) for part in chosen]
    facts: dict[str, object] = {"speakers": len(names) or None, "speaker_disjoint": by_speaker}
    if by_speaker:
        facts["test_speakers"] = ", ".join(sorted(map(str, chosen[2]))[:20])
    return parts, facts


def _stretch(lengths: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """bool [B, size]: a stretch of up to _MASKED of each length, somewhere within it."""
    wide, where = torch.rand(2, len(lengths), 1, generator=generator)
    wide = (wide * _MASKED * lengths.unsqueeze(1)).round()
    begin = (where * (lengths.unsqueeze(1) - wide)).floor()
    place = torch.arange(size)
    return (place >= begin) & (place < begin + wide)


class _Counted:
    """Counts, inside the block, what the neurons of a network do with real frames and with padding, which never fires."""

    def __init__(self, model: nn.Module) -> None:
        self.spikes, self.neurons = 0.0, 0.0
        self._layers = [layer for layer in model.modules() if isinstance(layer, LIF)]

    def __enter__(self) -> _Counted:
        self._hooks = [layer.register_forward_hook(self._count, with_kwargs=True) for layer in self._layers]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _count(
        self, layer: nn.Module, args: tuple[Tensor, ...], given: dict[str, Tensor | None], out: tuple[Tensor, Tensor]
    ) -> None:
        mask = given.get("mask")
        B, T, D = out[0].shape
        self.spikes += float(out[0].detach().sum(dtype=torch.float64))
        self.neurons += D * (B * T if mask is None else float(mask.sum()))
