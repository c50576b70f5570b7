"""Clips composed of small images: a digit for a few frames, clutter of other digits' pieces in all others."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from instar.errors import DataError, ShapeError

Pixels = NDArray[np.uint8]
Integers = NDArray[np.int64]


class Composed(NamedTuple):
    """Clips as tokens: the cells of each frame row by row, frame after frame."""

    tokens: Pixels
    """[N, frames · cells, patch²]"""
    classes: Integers
    """[N, targets], of the digits in the order in which they are shown."""
    begins: Integers
    """[N, targets], the first frame of each."""
    images: Integers
    """[N, targets], which image each is."""


def compose(
    pixels: Pixels, labels: Integers, count: int, *, frames: int, shown: int, targets: int, patch: int, moving: bool, seed: int
) -> Composed:
    """`count` clips from images [M, S, S] and their classes [M].

    A frame is S pixels high and wide, in cells of patch × patch. For `shown` consecutive frames it holds one image; `targets`
    such runs lie at random places of the clip, with images of classes that differ. Where images are moving, frames are wider and
    higher by a patch, and an image moves through its frames by a pixel each, turning round at the edge. In every other frame
    each cell is a random cell of such a frame of a random image: ink and the statistics of single cells are the same.

    Raises ShapeError where runs or patches do not fit, DataError for too few classes.
    """
    size = pixels.shape[1]
    if pixels.shape[1] != pixels.shape[2] or patch < 1 or size % patch:
        raise ShapeError(f"Images must be square, of whole patches; received {list(pixels.shape[1:])} and patch={patch}.")
    if min(count, shown, targets) < 1 or targets * shown > frames:
        raise ShapeError(
            "A clip needs room for its targets, all of them positive; received "
            f"count={count}, frames={frames}, shown={shown}, targets={targets}."
        )
    if len(np.unique(labels)) < targets:
        raise DataError(f"{targets} digits of different classes are shown in a clip; there are {len(np.unique(labels))} classes.")
    rng = np.random.default_rng(seed)
    most = patch if moving else 0  # of the place of an image in its frame
    cells = (size + most) // patch
    grid = (count, frames, cells, cells)
    image, corner = rng.integers(len(pixels), size=grid), rng.integers(most + 1, size=(2, *grid))
    from_cell = rng.integers(cells, size=(2, *grid))
    chosen = np.stack([_different(labels, targets, rng) for _ in range(count)])  # [N, targets]
    begins = np.sort(rng.permuted(np.tile(np.arange(frames - targets * (shown - 1)), (count, 1)), axis=1)[:, :targets], axis=1)
    begins = begins + np.arange(targets) * (shown - 1)
    start, speed = rng.integers(most + 1, size=(2, count, targets)), _directions(rng, (count, targets))
    row = np.arange(count)
    for k in range(targets):
        for t in range(shown):
            frame = begins[:, k] + t
            image[row, frame] = chosen[:, k, None, None]
            for axis in range(2):
                corner[axis, row, frame] = _between(start[axis, :, k] + t * speed[axis, :, k], most)[:, None, None]
                from_cell[axis, row, frame] = np.arange(cells)[:, None] if axis == 0 else np.arange(cells)
    windows = sliding_window_view(np.pad(pixels, ((0, 0), (most, most), (most, most))), (patch, patch), axis=(1, 2))
    top, left = (from_cell[axis] * patch - corner[axis] + most for axis in range(2))
    tokens = windows[image, top, left].reshape(count, frames * cells * cells, patch * patch)
    return Composed(tokens, labels[chosen], begins, chosen)


def _different(labels: Integers, targets: int, rng: np.random.Generator) -> Integers:
    """Images of different classes."""
    found: list[int] = []
    while len(found) < targets:
        new = int(rng.integers(len(labels)))
        if labels[new] not in labels[found]:
            found.append(new)
    return np.array(found)


def _directions(rng: np.random.Generator, shape: tuple[int, ...]) -> Integers:
    """One of the eight neighbours, [2, *shape]."""
    places = rng.integers(8, size=shape)
    places += places >= 4  # the fifth of nine is no movement
    return np.stack([places // 3 - 1, places % 3 - 1])


def _between(position: Integers, most: int) -> Integers:
    """Turned round at 0 and `most`."""
    if most == 0:
        return np.zeros_like(position)
    folded = position % (2 * most)
    return np.minimum(folded, 2 * most - folded)
