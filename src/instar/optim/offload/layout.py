"""Parameters cut into subgroups of equal room: what the store's extents hold, and where each parameter's state lies in them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from instar.errors import ShapeError
from instar.optim.offload.memory import PAGE, rounded

_LINE = 64
STAMP = PAGE
"""Bytes before the data of an extent; see `store`."""
TAIL = _LINE
"""Bytes after it."""


@dataclass(frozen=True)
class Piece:
    """Elements start … stop of parameter `index` (counted over all groups), at `offset` elements in its subgroup."""

    index: int
    start: int
    stop: int
    offset: int

    @property
    def length(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Subgroup:
    """Pieces of one parameter group, one dtype and one device; no piece of another."""

    group: int
    dtype: torch.dtype
    device: torch.device
    pieces: tuple[Piece, ...]

    @property
    def length(self) -> int:
        last = self.pieces[-1]
        return last.offset + last.length


@dataclass(frozen=True)
class Layout:
    """All subgroups, and the bytes of an extent: a stamp, exp_avg, exp_avg_sq, a tail; every extent has the same size.

    room: elements that fit into an extent (S).
    """

    subgroups: tuple[Subgroup, ...]
    room: int
    itemsize: int

    @property
    def plane(self) -> int:
        """Bytes from exp_avg to exp_avg_sq."""
        return rounded(self.room * self.itemsize, _LINE)

    @property
    def extent(self) -> int:
        """Bytes of stamp, both moments and tail."""
        return rounded(STAMP + 2 * self.plane + TAIL)

    @property
    def weights_extent(self) -> int:
        """Bytes of stamp, parameters and tail: what a commit writes of each subgroup besides its moments."""
        return rounded(STAMP + self.plane + TAIL)

    @property
    def elements(self) -> int:
        """Of all parameters."""
        return sum(subgroup.length for subgroup in self.subgroups)

    def moments(self, buffer: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """exp_avg and exp_avg_sq of a subgroup as views of an extent's buffer."""
        subgroup = self.subgroups[number]
        nbytes = subgroup.length * subgroup.dtype.itemsize
        planes = (buffer[start : start + nbytes].view(subgroup.dtype) for start in (STAMP, STAMP + self.plane))
        first, second = planes
        return first, second

    def weights(self, buffer: Tensor, number: int) -> Tensor:
        """The place of a subgroup's parameters in the buffer of a weights extent."""
        subgroup = self.subgroups[number]
        return buffer[STAMP : STAMP + subgroup.length * subgroup.dtype.itemsize].view(subgroup.dtype)

    def fingerprint(self, shapes: Sequence[Sequence[int]]) -> str:
        """What two layouts share that may use the same store: shapes, types, groups and cuts."""
        cuts = [[s.group, str(s.dtype), [[p.index, p.start, p.stop, p.offset] for p in s.pieces]] for s in self.subgroups]
        text = json.dumps([self.room, self.itemsize, [list(shape) for shape in shapes], cuts])
        return hashlib.sha256(text.encode()).hexdigest()


def checked(groups: Sequence[dict[str, Any]]) -> list[Tensor]:
    """All parameters in the order of the groups. Raises ShapeError for what cannot be cut into slices."""
    found = [p for group in groups for p in group["params"]]
    for number, p in enumerate(found):
        if not p.is_floating_point() or p.is_sparse:
            raise ShapeError(
                f"Parameter {number} is {p.dtype}, {p.layout}: only dense floating-point parameters have offloaded state."
            )
        if not p.is_contiguous():
            raise ShapeError(
                f"Parameter {number} of shape {tuple(p.shape)} is not contiguous; make it so: p.data = p.data.contiguous()."
            )
    return found


def cut(groups: Sequence[dict[str, Any]], room: int) -> Layout:
    """Consecutive subgroups of at most `room` elements; a new one begins with every group, dtype and device.

    Raises ShapeError. O(parameters + subgroups).
    """
    if room < 1:
        raise ShapeError(f"A subgroup holds at least one element; received {room}.")
    found: list[Subgroup] = []
    itemsize = max((p.dtype.itemsize for p in checked(groups)), default=4)
    index = 0
    for number, group in enumerate(groups):
        indices = range(index, index + len(group["params"]))
        index += len(group["params"])
        for (dtype, device), members in _alike(group["params"], indices):
            found += [Subgroup(number, dtype, device, pieces) for pieces in _filled(members, room)]
    return Layout(tuple(found), room, itemsize)


def _alike(params: Sequence[Tensor], indices: Sequence[int]) -> Iterator[tuple[tuple[Any, Any], list[tuple[int, int]]]]:
    """Index and size of parameters, by dtype and device, in the order in which these first come."""
    kinds: dict[tuple[Any, Any], list[tuple[int, int]]] = {}
    for index, p in zip(indices, params, strict=True):
        kinds.setdefault((p.dtype, p.device), []).append((index, p.numel()))
    yield from kinds.items()


def _filled(members: Sequence[tuple[int, int]], room: int) -> Iterator[tuple[Piece, ...]]:
    """Pieces of parameters, subgroup by subgroup."""
    pieces: list[Piece] = []
    used = 0
    for index, size in members:
        start = 0
        while start < size:
            length = min(size - start, room - used)
            pieces.append(Piece(index, start, start + length, used))
            start, used = start + length, used + length
            if used == room:
                yield tuple(pieces)
                pieces, used = [], 0
    if pieces:
        yield tuple(pieces)
