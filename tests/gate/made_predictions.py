"""Predictions made for tests."""

from __future__ import annotations

from typing import Any

import numpy as np

from instar.gate.predictions import Predictions

LABELS = ("yes", "no", "maybe")


def version(name: str, right: Any, *, seed: int = 0, **given: Any) -> Predictions:
    """A classifier over items 0 … N−1 that is right where `right` says so; wrong answers are another label."""
    right = np.asarray(right, dtype=bool)
    labels = [LABELS[i % 3] for i in range(len(right))]
    shift = np.random.default_rng(seed).integers(1, 3, len(right))
    outputs: list[Any] = [labels[i] if ok else LABELS[(i + shift[i]) % 3] for i, ok in enumerate(right)]
    for place in given.pop("silent", ()):
        outputs[place] = None
    return Predictions(name, given.pop("ids", [f"item-{i}" for i in range(len(right))]), outputs, labels=labels, **given)


def flipped(right: Any, places: Any) -> Any:
    """The same marks with some turned round."""
    found = np.array(right, dtype=bool)
    found[np.asarray(places, dtype=int)] ^= True
    return found
