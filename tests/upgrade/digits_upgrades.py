"""Real vectors (handwritten digits) under two encoders that differ in a known way."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

from instar.data.collection import Collection, Vectors

KINDS = ("cleaner", "turned", "other")


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def upgrade(kind: str, *, labels: bool = True, queries: bool = False) -> tuple[Collection, Vectors, Vectors]:
    """A collection and its vectors under the old and the new encoder.

    cleaner: the old one reads the pixels through noise, the coordinates stay. turned: the same, and the new one's coordinates are
    rotated. other: the old one sees only the upper rows of the picture.
    """
    digits = load_digits()
    pixels = digits.data - digits.data.mean(0)
    draw = np.random.default_rng(0)
    noisy = pixels + 4 * draw.standard_normal(pixels.shape)
    old, new = {
        "cleaner": (noisy, pixels),
        "turned": (noisy, pixels @ np.linalg.qr(draw.standard_normal((64, 64)))[0]),
        "other": (digits.images[:, :3].reshape(-1, 24) + 1e-3, pixels),
    }[kind]
    n = len(pixels)
    if not queries:
        collection = Collection(kind, [str(i) for i in range(n)], None, list(map(int, digits.target)) if labels else None)
        return (
            collection,
            Vectors("old", "o", unit(old), document_seconds=0.01),
            Vectors("new", "n", unit(new), document_seconds=0.02),
        )
    asked = np.arange(0, n, 3)
    kept = np.setdiff1d(np.arange(n), asked)
    nearest = unit(pixels)[asked] @ unit(pixels)[kept].T
    relevant = [np.sort(np.argsort(-row)[:2]) for row in nearest]
    collection = Collection(
        kind, [str(i) for i in kept], [f"picture {i}" for i in kept], None,
        [f"q{i}" for i in asked], [f"question {i}" for i in asked], relevant,
    )  # fmt: skip
    sides = [Vectors(name, name, unit(side)[kept], unit(side)[asked], 0.01, 0.002) for name, side in (("old", old), ("new", new))]
    return collection, *sides
