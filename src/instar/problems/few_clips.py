"""Clips of which few have labels: what pre-training on all of them, without labels, is worth to a mixer."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from instar.bench.fit import Precision, fit
from instar.bench.seeds import initialising, stream
from instar.catalogue import Build
from instar.errors import ShapeError
from instar.interfaces import Data, Items, Mixer, Monitor
from instar.mixers.selective_s4 import choosing_nothing
from instar.models.long_short import LongShort
from instar.problems.clips import Clips, ClipsProblem
from instar.problems.sequence_classes import SequenceClassifier


class Twins(nn.Module):
    """Two classifiers that start from the same weights: one learns from labels alone, the other is pre-trained first."""

    def __init__(self, classifier: SequenceClassifier) -> None:
        super().__init__()
        self.scratch, self.pretrained = classifier, copy.deepcopy(classifier)


class Pooled(nn.Module):
    """What a classifier's head reads."""

    def __init__(self, classifier: SequenceClassifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return self.classifier.pooled(tokens, mask)


class FewClipsProblem(ClipsProblem):
    """accuracy@scratch and accuracy@pretrained on `clips`, with labels for the first `labelled` training clips only.

    Both classifiers learn from the labels for the budget's steps. The second was first trained for as many steps by long-short
    masked contrastive learning (`models.long_short`) on all training clips without labels: the long view is a clip, the short one
    half of its frames in a row, from a random one on; mixers that choose tokens keep all of them meanwhile.

    Args:
        labelled: clips with labels. Others: see `ClipsProblem`. Raises ShapeError, DataError, MissingExtraError.
    """

    accepts: ClassVar = {Mixer: "twins"}

    def __init__(
        self,
        *,
        data: str | None = None,
        labelled: int = 200,
        frames: int = 32,
        shown: int = 3,
        patch: int = 4,
        train_items: int = 4_000,
        valid_items: int = 500,
        test_items: int = 1_000,
        batch: int = 32,
        width: int = 64,
        depth: int = 2,
        heads: int = 4,
        lr: float = 2e-3,
        precision: Precision = "float32",
    ) -> None:
        if not 1 <= labelled <= train_items:
            raise ShapeError(f"labelled must be between 1 and train_items={train_items}; received {labelled}.")
        super().__init__(
            data=data,
            frames=frames,
            shown=shown,
            patch=patch,
            train_items=train_items,
            valid_items=valid_items,
            test_items=test_items,
            batch=batch,
            width=width,
            depth=depth,
            heads=heads,
            lr=lr,
            precision=precision,
        )
        self.labelled = labelled

    def twins(self, build: Build, data: Data, seed: int) -> Twins:
        """The mixer in two small classifiers."""
        return Twins(self.classifier(build, data, seed))

    def fit(
        self,
        subject: Any,
        train: Any,
        *,
        steps: int,
        seed: int,
        monitor: Monitor | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        """Pre-training, then both from labels; `monitor` hears of the last, the pre-trained one."""
        folders = {name: None if checkpoint is None else checkpoint / name for name in ("long_short", "scratch", "pretrained")}
        self._pretrain(subject.pretrained, train, steps, seed, folders["long_short"])
        n = self.labelled
        few = Clips(train.rows[:n], train.labels[:n], train.peak, train.begins[:n], train.images[:n])
        super().fit(subject.scratch, few, steps=steps, seed=seed, checkpoint=folders["scratch"])
        super().fit(subject.pretrained, few, steps=steps, seed=seed, monitor=monitor, checkpoint=folders["pretrained"])

    def _pretrain(self, classifier: SequenceClassifier, train: Clips, steps: int, seed: int, folder: Path | None) -> None:
        half = -(-self.frames // 2) * self.cells

        def batch(index: int) -> tuple[Tensor, Tensor]:
            draw = stream(seed, f"long_short/{index}")
            tokens, _, _ = train.batch(torch.randperm(len(train), generator=draw)[: self.batch].tolist())
            begin = self.cells * int(torch.randint(self.frames // 2 + 1, (), generator=draw))
            tokens = tokens.to(next(classifier.parameters()).device)
            return tokens, tokens[:, begin : begin + half]

        with choosing_nothing(classifier):
            with initialising(seed):
                contrast = LongShort(Pooled(classifier), self.width).to(next(classifier.parameters()).device)
            fit(
                contrast,
                batch,
                lambda model, views: model(*views),
                steps=steps,
                lr=self.lr,
                precision=self.precision,
                seed=seed,
                checkpoint=folder,
            )

    def evaluate(self, subject: Any, split: Any) -> dict[str, Items]:
        """Right or wrong of both, as of `ClipsProblem`."""
        both = {"pretrained": subject.pretrained, "scratch": subject.scratch}
        return {f"accuracy@{name}": super(FewClipsProblem, self).evaluate(one, split)["accuracy"] for name, one in both.items()}

    def costs(self, subject: Any) -> dict[str, float]:
        """Of one classifier."""
        return {**super().costs(subject.pretrained), "parameters": float(sum(p.numel() for p in subject.pretrained.parameters()))}
