"""How badly a head explains a stored vector, estimated from that vector alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instar.errors import DataError, RecordError, ShapeError
from instar.interfaces import Floats

_LEAST = 1e-6
"""Residuals below this are rounding."""
_PENALTIES = np.logspace(-3, 5, 17)


@dataclass(frozen=True)
class Uncertainty:
    """Expected log residual of an item: log(1 − cos(compatible(new), old)) ≈ ⟨w, old⟩ + b.

    After FastFill (Jaeckle et al., ICLR 2023), which orders rows by a predicted variance. It differs in two ways: there the map
    goes from old to new vectors, here from new to old; there map and variance are learnt together by a likelihood, here the
    residuals of a map that is already there are explained by ridge regression.
    """

    encoder: str
    """Fingerprint of the generation whose vectors are explained."""
    weights: NDArray[np.float64]
    """[O]"""
    bias: float

    @classmethod
    def fit(cls, encoder: str, old: Floats, residuals: NDArray[Any]) -> Uncertainty:
        """From stored vectors [N, O] and 1 − cos(compatible(new), old) [N] of items that the head was not fitted on.

        The penalty is chosen by generalised cross-validation. O(N·O² + O³). Raises DataError for fewer than 8 items.
        """
        x, y = np.asarray(old, np.float64), np.log(np.maximum(np.asarray(residuals, np.float64), _LEAST))
        if x.ndim != 2 or y.shape != (len(x),):
            raise ShapeError(f"Expected vectors [N, O] and residuals [N]; received {list(x.shape)} and {list(y.shape)}.")
        if len(x) < 8 or not np.isfinite(y).all():
            raise DataError(f"Uncertainty is estimated from 8 finite residuals or more; received {len(x)}.")
        centre, level = x.mean(0), y.mean()
        u, s, vt = np.linalg.svd(x - centre, full_matrices=False)
        along = u.T @ (y - level)

        def validated(penalty: float) -> float:
            shrink = s**2 / (s**2 + penalty)
            left = ((y - level) ** 2).sum() - (along**2 * (2 * shrink - shrink**2)).sum()
            return float(left / (1 - (1 + shrink.sum()) / len(x)) ** 2) if 1 + shrink.sum() < len(x) else np.inf

        penalty = min(_PENALTIES, key=validated)
        weights = vt.T @ (along * s / (s**2 + penalty))
        return cls(encoder, weights, float(level - centre @ weights))

    def __call__(self, old: Floats) -> NDArray[np.float64]:
        """Expected log residuals [N] of stored vectors [N, O]."""
        if old.ndim != 2 or old.shape[1] != len(self.weights):
            raise ShapeError(f"Expected stored vectors [N, {len(self.weights)}]; received {list(old.shape)}.")
        return np.asarray(old, np.float64) @ self.weights + self.bias

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"encoder": self.encoder, "weights": [float(w) for w in self.weights], "bias": self.bias}

    @classmethod
    def of_json(cls, table: Any) -> Uncertainty:
        """What `as_json` gave. Raises RecordError."""
        try:
            found = cls(str(table["encoder"]), np.asarray(table["weights"], np.float64), float(table["bias"]))
        except (KeyError, TypeError, ValueError) as error:
            raise RecordError(f"This is no estimate of uncertainty: {error!r}.") from error
        if found.weights.ndim != 1 or not np.isfinite([*found.weights, found.bias]).all():
            raise RecordError("This is no estimate of uncertainty: its weights are no list of finite numbers.")
        return found
