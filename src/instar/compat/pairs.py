"""The same items under both encoders, checked and made unit vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from instar.errors import DataError, ShapeError
from instar.interfaces import Pairs

_SAME = 1e-6
"""Cosines this near to 1 are those of one vector."""


def of(old: Any, new: Any, labels: Any = None, inputs: Any = None) -> Pairs:
    """Pairs from arrays or tensors [N, O], [N, D], [N] (any hashable classes), [N, I].

    Old and new vectors become unit vectors; inputs stay as they are. Raises ShapeError for other shapes or types, DataError for
    NaN, infinite or zero rows and for no rows.
    """
    first, second = rows(old, "old"), rows(new, "new")
    read = None if inputs is None else rows(inputs, "inputs", zero=True)
    for name, value in (("new", second), ("inputs", read), ("labels", labels)):
        if value is not None and len(value) != len(first):
            raise ShapeError(f"Pairs expect as many rows everywhere: {len(first)} old vectors, {len(value)} {name}.")
    return Pairs(F.normalize(first, dim=1), F.normalize(second, dim=1), None if labels is None else classes(labels), read)


def rows(values: Any, name: str, *, zero: bool = False) -> Tensor:
    """float32 [N, D]. Raises ShapeError, and DataError for rows that are not finite or (unless `zero`) zero."""
    if isinstance(values, np.ndarray) and values.dtype.kind not in "fiu":
        raise ShapeError(f"The {name} vectors expect numbers, received {values.dtype}.")
    found = torch.as_tensor(values)
    if found.ndim != 2 or found.is_complex():
        raise ShapeError(f"The {name} vectors expect a table [items, width], received {list(found.shape)} of {found.dtype}.")
    found = found.to(torch.float32)
    if not found.numel():
        raise DataError(f"There are no {name} vectors: received {list(found.shape)}.")
    if bad := int((~torch.isfinite(found).all(1)).sum()):
        raise DataError(f"{bad} of {len(found)} {name} vectors hold NaN or infinity.")
    if not zero and (bad := int((found.norm(dim=1) == 0).sum())):
        raise DataError(f"{bad} of {len(found)} {name} vectors are zero, so they have no direction.")
    return found


def distinct(vectors: Tensor, name: str) -> None:
    """Raise DataError where all rows [N, D] are one direction: whatever made them tells nothing from anything."""
    if len(vectors) > 1 and float((F.normalize(vectors, dim=1) @ F.normalize(vectors[:1], dim=1).T).min()) > 1 - _SAME:
        raise DataError(f"All {len(vectors)} {name} vectors are the same: nothing can be found by them. Is the encoder broken?")


def classes(labels: Any) -> Tensor:
    """Any classes as numbers 0 … C − 1, in the order of their first appearance."""
    if isinstance(labels, Tensor):
        labels = labels.tolist()
    places: dict[Any, int] = {}
    return torch.tensor([places.setdefault(label, len(places)) for label in labels], dtype=torch.int64)
