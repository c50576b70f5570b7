"""Whether labels are classes that a head can learn from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from instar.errors import DataError
from instar.interfaces import Pairs

MOST = 2048
"""Classes of which a classifier is trained: of so many it takes more of a step than all the rest of a head."""


def nothing(labels: Tensor) -> str:
    """Why classes [N] teach (and measure) nothing: one class for all, or one for each; empty where they do. O(N log N)."""
    _, counts = torch.unique(labels, return_counts=True)
    if len(counts) < 2:
        return f"all {len(labels):,} items have the same label, which tells nothing apart"
    shared = int(counts[counts > 1].sum())
    if 2 * shared < len(labels):
        some = f"only {shared:,} of {len(labels):,} items share theirs with another"
        return f"{len(counts):,} labels are names of items, not classes: {some if shared else 'no two items share a label'}"
    return ""


def unfit(labels: Tensor) -> str:
    """Why a head cannot learn from classes [N], which are numbers from 0; empty where it can."""
    if reason := nothing(labels):
        return reason
    classes = int(labels.max()) + 1
    return f"{classes:,} classes are more than the {MOST:,} that a head is taught" if classes > MOST else ""


def require(labels: Tensor) -> None:
    """Raise DataError for classes that a head cannot learn from."""
    if reason := unfit(labels):
        raise DataError(f"These labels teach a head nothing: {reason}. Give coarser ones, or none.")


def usable(pairs: Pairs) -> tuple[Pairs, str]:
    """The pairs, without labels that a head cannot learn from; and why they went, empty where nothing did."""
    reason = "" if pairs.labels is None else unfit(pairs.labels)
    return (replace(pairs, labels=None), reason) if reason else (pairs, "")


def measurable(labels: list[Any] | None) -> str:
    """Why nothing can be measured by labels of any kind; empty where it can, or where there are none."""
    from instar.compat.pairs import classes

    return "" if labels is None else nothing(classes(labels))
