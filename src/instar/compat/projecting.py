"""Queries for any generation from a head and the heads before it."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from instar.errors import DataError, ShapeError
from instar.interfaces import CompatibleHead


def project(head: CompatibleHead, x: Tensor, generation: int) -> Tensor:
    """Unit vectors that query rows of `generation` (see `CompatibleHead.project`)."""
    if x.ndim != 2 or x.shape[1] != head.input_dim:
        raise ShapeError(f"{type(head).__name__} expects vectors [N, {head.input_dim}], received {list(x.shape)}.")
    own = next(itertools.chain(head.parameters(), head.buffers()), x)
    if not x.is_floating_point() or x.dtype != own.dtype:
        wanted = own.dtype if own.is_floating_point() else torch.float32
        raise ShapeError(f"{type(head).__name__} expects vectors of {wanted}, received {x.dtype}; convert them first.")
    if not 0 <= generation <= head.newest:
        raise ShapeError(f"{type(head).__name__} knows generations 0 to {head.newest}, received {generation}.")
    if generation == head.newest:
        found = head.full(x)
    elif generation == head.newest - 1:
        found = head.compatible(x)
    else:
        found = head.lower(head.full(x), generation)
    lengths = found.norm(dim=1, keepdim=True)
    # Whatever is wrong with a row reaches its length: nothing has to be read twice.
    if not bool((torch.isfinite(lengths) & (lengths > 0)).all()):
        raise DataError(f"{type(head).__name__} was given vectors without a direction (NaN, infinite, zero), or gives such ones.")
    return found / lengths
