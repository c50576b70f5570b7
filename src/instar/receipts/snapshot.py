"""A model at one moment, such that it can be put back; and the two sides of an update, which can be exchanged.

Memory: of every tensor only its place and digest are kept, and a copy where it will be written in place. A tensor that is
replaced (another Parameter, another `.data`) needs no copy: its old memory is held.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, Literal

from torch import Tensor, nn

from instar.errors import ReceiptError
from instar.receipts import bits
from instar.receipts.fingerprint import Entry, Table, entry, named
from instar.receipts.structure import Difference, Structure, modules

Side = Literal["before", "after"]


@dataclass
class Slot:
    """One parameter or buffer as it was: the object, the memory it read, its flag and its digest."""

    name: str
    tensor: Tensor
    data: Tensor
    requires_grad: bool
    entry: Entry
    copy: bits.Copy | None = None
    """Its bits, where what lies in `data` is or will be something else."""

    @classmethod
    def of(cls, name: str, tensor: Tensor, line: Entry, copy: bits.Copy | None = None) -> Slot:
        """The tensor as it is now."""
        return cls(name, tensor, tensor.detach(), tensor.requires_grad, line, copy)

    def in_place(self) -> bool:
        """Whether the object still reads the same memory in the same way."""
        return self.tensor.dtype == self.data.dtype and bits.same_place(self.tensor, self.data)

    def content(self) -> bits.Copy:
        """The bits: the copy, or (shared) what lies in the memory."""
        return bits.copy(self.data) if self.copy is None else self.copy

    def put(self) -> None:
        """Give the object its memory, bits and flag back."""
        if not self.in_place():
            self.tensor.data = self.data
        if self.copy is not None and not bits.equal(self.data, self.copy):
            bits.write(self.data, self.copy)
        if self.tensor.requires_grad != self.requires_grad:
            self.tensor.requires_grad_(self.requires_grad)
        if self.tensor.is_leaf and self.tensor.grad is not None and self.tensor.grad.shape != self.tensor.shape:
            self.tensor.grad = None


def written(slots: Iterable[Slot]) -> list[Slot]:
    """The slots whose memory no longer holds their bits. One pass: comparison where there is a copy, else a digest."""
    plain, found = [], []
    for slot in slots:
        if slot.copy is None:
            plain.append(slot)
        elif not bits.equal(slot.data, slot.copy):
            found.append(slot)
    hashes = bits.digests([bits.parts(slot.data, slot.name) for slot in plain])
    return found + [slot for slot, sha256 in zip(plain, hashes, strict=True) if sha256 != slot.entry.sha256]


class Snapshot:
    """A model before an update. One pass over its bytes.

    Args:
        copied: says of a name whether the tensor is copied, that is, whether it may be written in place.

    Raises ReceiptError for tensors without data.
    """

    def __init__(self, model: nn.Module, copied: Callable[[str], bool]) -> None:
        self.structure = Structure(model)
        self.modules = modules(model)
        tensors = named(model)
        content = {n: bits.parts(tensor, n) for n, (tensor, _) in tensors.items()}
        copies = {n: bits.copy(tensor) for n, (tensor, _) in tensors.items() if copied(n)}
        hashes = dict(zip(content, bits.digests([copies.get(n, content[n]) for n in content]), strict=True))
        self.slots = {
            n: Slot.of(n, tensor, entry(tensor, hashes[n], persistent), copies.get(n))
            for n, (tensor, persistent) in tensors.items()
        }
        self._grads = [(slot.tensor, slot.tensor.grad) for slot in self.slots.values() if slot.tensor.is_leaf]

    @property
    def table(self) -> Table:
        """The table of the model as it was."""
        return {name: slot.entry for name, slot in self.slots.items()}

    def copy(self, name: str) -> None:
        """Copy a tensor that is about to be written. Raises ReceiptError when it was written already."""
        slot = self.slots[name]
        if slot.copy is None:
            kept = bits.copy(slot.data)
            if bits.digest(kept) != slot.entry.sha256:
                raise ReceiptError(f"{name} was written before it was declared. Declare a tensor first, then write it.")
            slot.copy = kept

    def restore(self) -> list[str]:
        """Put the model back; returns the tensors that could not be, because they were written and have no copy."""
        with uninterrupted():
            self.structure.restore()
            for slot in self.slots.values():
                slot.put()
            for tensor, grad in self._grads:
                tensor.grad = grad
        return sorted(slot.name for slot in written(s for s in self.slots.values() if s.copy is None))


@dataclass
class Sides:
    """Both sides of an update, in one process. The side that the model is not in holds what differs."""

    before: list[Slot]
    after: list[Slot]
    attributes: Sequence[Difference] = ()

    def get(self, side: Side) -> list[Slot]:
        """The tensors of one side."""
        return self.before if side == "before" else self.after

    def foreign(self, side: Side) -> list[str]:
        """Tensors of a side whose memory is held, not copied, not in the model, and which somebody wrote meanwhile."""
        live = {id(slot.tensor): slot for slot in self.get("before" if side == "after" else "after")}
        held = [s for s in self.get(side) if s.copy is None]
        held = [s for s in held if id(s.tensor) not in live or not bits.same_place(s.data, live[id(s.tensor)].data)]
        return sorted(slot.name for slot in written(held))

    def exchange(self, to: Side) -> None:
        """Put the model on one side; all or nothing, an interrupt waits. O(bytes of what is written in place)."""
        target = self.get(to)
        other, back = (self.after, "after") if to == "before" else (self.before, "before")
        # What will be overwritten is copied first, so that every write can be taken back.
        overwritten: set[Any] = set().union(*(bits.storages(slot.data) for slot in target if slot.copy is not None))
        copies = [bits.copy(slot.data) if bits.storages(slot.data) & overwritten else None for slot in other]
        with uninterrupted():
            for slot, copy in zip(other, copies, strict=True):
                slot.copy = copy
            try:
                self._put(target, to)
            except BaseException:
                self._put(other, back)
                for slot in other:
                    slot.copy = None
                raise
            for slot in target:
                slot.copy = None

    def _put(self, slots: list[Slot], side: str) -> None:
        for attribute in self.attributes:
            attribute.put(side)
        for slot in slots:
            slot.put()


def compare(before: Snapshot, model: nn.Module) -> tuple[Sides, Table, dict[str, str], list[str]]:
    """What an update did since the snapshot: both sides, the table now, old -> new names, undeclared tensors written.

    One pass over the bytes.
    """
    changed = {id(slot.tensor) for slot in written(before.slots.values())}
    undeclared = sorted(s.name for s in before.slots.values() if id(s.tensor) in changed and s.copy is None)
    old = {id(slot.tensor): slot for slot in before.slots.values()}
    now = named(model)
    fresh = [n for n, (t, _) in now.items() if id(t) not in old or id(t) in changed or not old[id(t)].in_place()]
    hashes = dict(zip(fresh, bits.digests([bits.parts(now[n][0], n) for n in fresh]), strict=True))
    table: Table = {}
    after: list[Slot] = []
    moved: dict[str, str] = {}
    for name, (tensor, persistent) in now.items():
        slot = old.get(id(tensor))
        known = slot.entry.sha256 if slot is not None and name not in hashes else hashes[name]
        table[name] = entry(tensor, known, persistent)
        if slot is not None and slot.name != name:
            moved[slot.name] = name
        if slot is None or name in hashes or tensor.requires_grad != slot.requires_grad:
            after.append(Slot.of(name, tensor, table[name]))
    live, standing = {id(t) for t, _ in now.values()}, {id(slot.tensor) for slot in after}
    kept = [s for s in before.slots.values() if id(s.tensor) in standing or id(s.tensor) in changed or id(s.tensor) not in live]
    for slot in kept:
        if id(slot.tensor) not in changed:
            slot.copy = None  # its memory still holds the bits
    return Sides(kept, after, before.structure.differences()), table, moved, undeclared


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C waits until the block has ended."""
    if threading.current_thread() is not threading.main_thread() or not callable(signal.getsignal(signal.SIGINT)):
        yield
        return
    pressed: list[tuple[int, FrameType | None]] = []
    previous = signal.signal(signal.SIGINT, lambda number, frame: pressed.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if pressed and callable(previous):
        previous(*pressed[0])
