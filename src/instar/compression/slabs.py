"""Large weights some rows at a time, so that what lies between two steps of arithmetic stays small beside the weight."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Parts = dict[str, Tensor]
_ELEMENTS = 1 << 20
"""Of a slab; a weight of no more is one."""


def encoded(weight: Tensor, encode: Callable[[Tensor], Parts], blank: Parts, multiple: int = 1) -> Parts:
    """`encode(weight)` [R, C], for an `encode` that treats each `multiple` rows alone and puts out rows, or bytes, in order.

    blank: tensors like what comes out.
    """
    slabs = _slabs((weight.shape[0], weight.shape[1]), multiple)
    if len(slabs) == 1:
        return encode(weight)
    # Pieces that are kept would lie between the gaps that larger ones left, which then fit nothing.
    found = {name: torch.empty_like(part, device=weight.device) for name, part in blank.items()}
    filled = dict.fromkeys(found, 0)
    for rows in slabs:
        for name, part in encode(weight[rows]).items():
            found[name][filled[name] : filled[name] + len(part)] = part
            filled[name] += len(part)
    return found


def decoded(shape: tuple[int, ...], decode: Callable[[slice], Tensor], multiple: int = 1) -> Tensor:
    """The float32 [R, C] whose rows `decode` gives."""
    first, *others = _slabs(shape, multiple)
    part = decode(first)
    if not others:
        return part
    found = part.new_empty(shape)
    found[first] = part
    for rows in others:
        found[rows] = decode(rows)
    return found


def _slabs(shape: tuple[int, ...], multiple: int) -> list[slice]:
    """Rows of about so many elements, each slab a multiple of rows, in order; one at least."""
    rows = max(1, _ELEMENTS // max(1, shape[1]) // multiple) * multiple
    return [slice(start, min(start + rows, shape[0])) for start in range(0, max(1, shape[0]), rows)]
