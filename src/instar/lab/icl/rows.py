"""Real rows for tasks in context: diabetes, breast cancer and digits, that come with scikit-learn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from instar import extras
from instar.errors import DataError, ShapeError


@dataclass(frozen=True)
class Rows:
    """x [R, D] and y [R], float64."""

    x: Tensor
    y: Tensor

    def contexts(self, tasks: int, examples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """xs [tasks, examples, D] and ys, drawn without replacement inside a task. Raises DataError for too few rows."""
        if examples > len(self.x):
            raise DataError(f"A task of {examples} examples needs as many rows; there are {len(self.x)}.")
        order = torch.rand(tasks, len(self.x), generator=generator).argsort(1)[:, :examples]
        return self.x[order], self.y[order]


def diabetes(width: int = 10, *, whiten: bool = True) -> Rows:
    """442 patients: the first principal components of standardised features, white or not, and the standardised progression.

    White inputs have the covariance that learners were trained on; others are a covariate shift. Raises MissingExtraError.
    """
    found = _load("load_diabetes", width)
    y = torch.from_numpy(found.target).double()
    x = torch.from_numpy(found.data).double()
    x = _components((x - x.mean(0)) / x.std(0), width, whiten)  # as they come, the sum of their squares is 1
    return Rows(x, (y - y.mean()) / y.std())


def digits(width: int = 20, *, norm: float = 1.0) -> Rows:
    """1,797 images: their first principal components, scaled to ‖A‖₂ = norm over 100 rows; y is the digit."""
    if not norm > 0:
        raise ShapeError(f"norm must be positive; received {norm}.")
    found = _load("load_digits", width)
    x = _components(torch.from_numpy(found.data).double(), width, False)
    size = torch.linalg.matrix_norm(x, 2) * (100 / len(x)) ** 0.5
    return Rows(norm * x / size, torch.from_numpy(found.target).double())


def breast_cancer(width: int = 10, *, label: Literal["diagnosis", "column"] = "diagnosis", seed: int = 0) -> Rows:
    """569 tumours as {−1, 1}: `width` of the 30 features above their median; y is malignant (1), or another feature so cut."""
    found = _load("load_breast_cancer", width, spare=int(label == "column"))
    table = torch.from_numpy(found.data).double()
    bits = torch.where(table > table.median(0).values, 1.0, -1.0).double()
    order = torch.randperm(bits.shape[1], generator=torch.Generator().manual_seed(seed))
    malignant = torch.where(torch.from_numpy(found.target) == 0, 1.0, -1.0).double()
    return Rows(bits[:, order[:width]], malignant if label == "diagnosis" else bits[:, order[width]])


def _load(name: str, width: int, spare: int = 0) -> Any:
    """The set, if it has so many features that vary, and `spare` more."""
    found = getattr(extras.require("sklearn.datasets", "text"), name)()
    most = int((found.data.std(0) > 0).sum()) - spare
    if not 1 <= width <= most:
        raise ShapeError(f"{name} has {most} features for inputs; received a width of {width}.")
    return found


def _components(x: Tensor, width: int, whiten: bool) -> Tensor:
    """Centred columns of some variance, along the first principal directions; white ones have variance 1."""
    x = x[:, x.std(0) > 0]
    x = x - x.mean(0)
    _, size, directions = torch.linalg.svd(x, full_matrices=False)
    x = x @ directions[:width].T
    return x / (size[:width] / (len(x) - 1) ** 0.5) if whiten else x
