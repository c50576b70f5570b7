"""Clips in which a digit is shown for a few frames among clutter: the composed experiment for selective state spaces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from instar.bench.fit import Precision
from instar.bench.seeds import derive, stream
from instar.data import clips
from instar.data.images import images
from instar.errors import DataError, ShapeError
from instar.interfaces import Data, Items
from instar.models.decoder import sinusoid
from instar.problems.sequence_classes import SequenceClassesProblem, Sequences

_SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Clips(Sequences):
    """Rows uint8 [N, T, P] of T tokens of P grey values, each clip with its class."""

    peak: int
    """The grey value that is 1."""
    begins: NDArray[np.int64]
    """[N, targets]: the first frame of each digit that is shown."""
    images: NDArray[np.int64]
    """[N]: which image the first of them is."""

    def batch(self, chosen: Sequence[int]) -> tuple[Tensor, Tensor | None, Tensor]:
        """Tokens float [B, T, P] between 0 and 1, no mask, and classes [B]."""
        rows = torch.from_numpy(np.stack([self.rows[i] for i in chosen])).float() / self.peak
        return rows, None, torch.from_numpy(self.labels[list(chosen)])


class FrameEmbedding(nn.Linear):
    """RMSNorm(W p + b + E[cell] + a · sinusoid(frame)) of the grey values p of a cell: tokens [B, T, P] -> [B, T, D].

    Grey values are small numbers: without the norm, what mixers add would drown them.

    Args:
        patch: pixels of a cell's side, P = patch². cells: of a frame. width: D.
    """

    def __init__(self, patch: int, cells: int, width: int) -> None:
        super().__init__(patch * patch, width)
        self.cell = nn.Parameter(0.02 * torch.randn(cells, width))
        self.time = nn.Parameter(torch.tensor(0.02 * 2**0.5))
        self.norm = nn.RMSNorm(width, eps=1e-6)
        nn.init.zeros_(self.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        place = torch.arange(tokens.shape[1], device=tokens.device)
        frame = sinusoid(place.unsqueeze(0) // len(self.cell), self.out_features)
        return self.norm(super().forward(tokens) + self.cell[place % len(self.cell)] + self.time * frame.to(tokens.dtype))


class ClipsProblem(SequenceClassesProblem):
    """accuracy = the share of clips in which the digit is named that is shown first (the only one, where targets = 1).

    A clip is a row of tokens, the cells of frame after frame; see `data.clips.compose`. Every mixer is told cell and frame. One
    digit asks to find few frames among many; two or more ask for their order over the length of the clip as well.

    Args:
        data: None for scikit-learn's digits, mnist, or an `.npz` file of square images; see `data.images`.
        frames: of a clip. shown: consecutive frames with a digit. targets: how many digits, of different classes.
        patch: side of a cell in pixels; an image must be a multiple of it. moving: digits move through their frames.
        train_items, valid_items, test_items: clips.
        batch, width, depth, heads, lr, precision: see `SequenceClassesProblem`.

    No image serves two splits, as target or as clutter: six tenths of the images make training clips, two tenths each the others;
    writers are not kept apart. All seeds have the same clips; those that show the same image are one item, since there are fewer
    images than clips. Raises ShapeError, DataError, MissingExtraError.
    """

    def __init__(
        self,
        *,
        data: str | None = None,
        frames: int = 32,
        shown: int = 3,
        targets: int = 1,
        patch: int = 4,
        moving: bool = False,
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
        if min(frames, shown, targets, patch, train_items, valid_items, test_items) < 1:
            raise ShapeError(
                "Clips expect positive sizes; received "
                f"frames={frames}, shown={shown}, targets={targets}, patch={patch}, "
                f"items={train_items}, {valid_items}, {test_items}."
            )
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
        self.data, self.frames, self.shown, self.targets = data, frames, shown, targets
        self.patch, self.moving = patch, moving
        self.sizes, self.cells = (train_items, valid_items, test_items), 1

    def load(self, seed: int) -> Data:
        """The same clips for every seed."""
        found = images(self.data)
        count = len(found.pixels)
        self.classes = len(found.classes)
        order = torch.randperm(count, generator=stream(0, "clips")).numpy()
        fifth = count // 5
        if fifth < self.targets:
            raise DataError(f"{found.name}: {count} images are too few for three splits of clips with {self.targets} digits.")
        splits = []
        for name, size, part in zip(
            _SPLITS, self.sizes, (order[2 * fifth :], order[:fifth], order[fifth : 2 * fifth]), strict=True
        ):
            made = clips.compose(
                found.pixels[part],
                found.labels[part],
                size,
                frames=self.frames,
                shown=self.shown,
                targets=self.targets,
                patch=self.patch,
                moving=self.moving,
                seed=derive(0, f"clips/{name}"),
            )
            splits.append(Clips(list(made.tokens), made.classes[:, 0], int(found.pixels.max()), made.begins, made.images[:, 0]))
        self.cells = splits[0].rows[0].shape[0] // self.frames
        data = self.splits(found.name, "image that clips show", *splits)
        counts = {f"{name}_items": len(np.unique(one.images)) for name, one in zip(_SPLITS, splits, strict=True)}
        facts = {**data.facts, **counts, "test_clips": len(splits[2]), "tokens_of_a_frame": self.cells}
        return Data(data.train, data.valid, data.test, data.sha256, facts)

    def evaluate(self, subject: Any, split: Any) -> dict[str, Items]:
        """Right or wrong, clip by clip; those that show the same image are one item."""
        return {name: found.by(split.images.tolist()) for name, found in super().evaluate(subject, split).items()}

    def embedding(self) -> nn.Module:
        """Cells of frames, with their places."""
        return FrameEmbedding(self.patch, self.cells, self.width)
