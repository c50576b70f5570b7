"""The receipt itself: what it says, and the ways between the two states that it knows."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType

from torch import Tensor, nn

from instar.errors import ReceiptError
from instar.receipts import bits, facts, store
from instar.receipts.facts import Change, Facts
from instar.receipts.fingerprint import Table
from instar.receipts.placing import require_state, sides_by_name
from instar.receipts.snapshot import Side, Sides, uninterrupted
from instar.receipts.standing import Mark, marks, require_last


class Receipt:
    """One update: what it changed, and the way back. Made by `updating` or `load`.

    In the process that made it, undo covers everything (modules, shapes, flags, hooks). From a folder it covers the bits of
    tensors; see `undo` and `apply`.
    """

    def __init__(self, said: Facts, *, folder: Path | None = None) -> None:
        self.facts = said
        self._folder = folder
        self._model: weakref.ref[nn.Module] | None = None
        self._sides: Sides | None = None
        self._tables: dict[Side, Table] = {}
        self._side: Side = "after"

    @classmethod
    def _made(cls, said: Facts, model: nn.Module, sides: Sides, tables: dict[Side, Table]) -> Receipt:
        receipt = cls(said)
        receipt._model, receipt._sides, receipt._tables = weakref.ref(model), sides, tables
        return receipt

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits, computed from what the receipt says."""
        return self.facts.id

    @property
    def changes(self) -> tuple[Change, ...]:
        """The tensors that changed, came or went, by name."""
        return self.facts.changes

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors that changed."""
        return self.facts.nbytes

    @property
    def seconds(self) -> float:
        """What the update took."""
        return self.facts.seconds

    @property
    def standing(self) -> bool:
        """Whether this update stands on its model now."""
        model = self._model() if self._model else None
        return model is not None and any(mark.id == self.id for mark in marks(model))

    def __repr__(self) -> str:
        return f"<Receipt {self.id} {self.facts.method}: {len(self.changes)} tensors, {self.nbytes} bytes, {self.seconds:.3g} s>"

    def replaced(self) -> list[tuple[Tensor, Tensor | None]]:
        """(old, new) for every parameter or buffer object that this update replaced or removed: what an optimiser must follow.

        Objects that were only written, moved to another name or given other memory stay valid. Raises ReceiptError for a
        receipt from a folder.
        """
        if self._sides is None:
            raise ReceiptError(f"Receipt {self.id} was loaded from {self._folder}, and files know no objects.")
        old = {slot.name: slot.tensor for slot in self._sides.before}
        new = {slot.name: slot.tensor for slot in self._sides.after}
        kept = {id(tensor) for tensor in new.values()}
        return [(tensor, new.get(name)) for name, tensor in old.items() if id(tensor) not in kept]

    def undo(self, model: nn.Module | None = None) -> None:
        """Restore the exact bits from before the update. One pass over the model to see that nothing else changed.

        Args:
            model: needed for a receipt from a folder (or for another copy of the model): its fingerprint must be `facts.after`.

        Raises ReceiptError, with the model untouched, when a later update stands, the model was changed since, the update is
        undone already, or it changed the structure of a model that is not the one it was made on.
        """
        self._go("before", model)

    def apply(self, model: nn.Module | None = None) -> None:
        """Make the update again: the exact bits after it. One pass over the model.

        Args:
            model: as in `undo`; its fingerprint must be `facts.base`. An update that changed the structure can only be
                applied to a model whose structure was already changed in the same way; its tensors are then filled in.

        Raises ReceiptError, with the model untouched, when the model does not fit.
        """
        self._go("after", model)

    @contextlib.contextmanager
    def reverted(self, model: nn.Module | None = None) -> Iterator[None]:
        """Inside the block the model is as before the update, afterwards as after it, to the bit. Raises ReceiptError."""
        self.undo(model)
        try:
            yield
        finally:
            self.apply(model)

    def __enter__(self) -> Receipt:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.standing:
            self.undo()

    def values(self, side: Side) -> dict[str, Tensor]:
        """Copies of the changed tensors before or after, in main memory. Raises ReceiptError when the model has moved on."""
        return {name: tensor.clone() for name, tensor in self._values(side).items()}

    def save(self, folder: str | Path) -> Path:
        """Write the receipt to a new folder, whole or not at all: `receipt.json` and both sides of the changed tensors.

        Raises OutputError; ReceiptError when the model was changed since, so that the bits after the update are gone.
        """
        return store.save(self.facts, self._values("before"), self._values("after"), Path(folder))

    def record(self, model_folder: str | Path) -> Path:
        """`save` as the next entry of the history of a model folder; the weights themselves are the model's to save."""
        return store.record(self.facts, self._values("before"), self._values("after"), Path(model_folder))

    def _values(self, side: Side) -> dict[str, Tensor]:
        lines = self.facts.lines(side)
        return {name: bits.value(copy, lines[name].torch_dtype, lines[name].shape) for name, copy in self._contents(side).items()}

    def _contents(self, side: Side) -> Mapping[str, bits.Copy]:
        if self._sides is None:
            assert self._folder is not None  # a receipt has one or the other
            return store.values(self._folder, self.facts, side)
        lines = self.facts.lines(side)
        copies = {slot.name: slot.content() for slot in self._sides.get(side) if slot.name in lines}
        hashes = dict(zip(copies, bits.digests(list(copies.values())), strict=True))
        if gone := [name for name, line in lines.items() if hashes.get(name) != line.sha256]:
            raise ReceiptError(
                f"The model was changed since receipt {self.id}, in {gone[0]}: save a receipt before the next change."
            )
        return copies

    def _go(self, to: Side, model: nn.Module | None) -> None:
        own = self._model() if self._model else None
        model = own if model is None else model
        if model is None:
            raise ReceiptError(
                f"Receipt {self.id} has no model in this process: call it with the model, undo(model) or apply(model)."
            )
        sides = self._sides if model is own else None
        if sides is not None:
            self._require_turn(to)
        if to == "before":
            require_last(model, self.id, self.facts.method)
        if sides is None:
            sides = sides_by_name(model, self.facts, to, self._contents)
        else:
            require_state(model, sides, self._tables, "after" if to == "before" else "before", self.id)
        with uninterrupted():
            sides.exchange(to)
            found = marks(model)
            if to == "after":
                found.append(Mark(self.id, self.facts.method))
            elif found:
                found.pop()
            if self._sides is None:
                self._model = weakref.ref(model)
            elif model is own:
                self._side = to

    def _require_turn(self, to: Side) -> None:
        if to == "before" and not self.standing:
            raise ReceiptError(f"Receipt {self.id} does not stand: it is undone already, or part of a larger update.")
        if to == "after" and self._side == "after":
            raise ReceiptError(f"Receipt {self.id} cannot be applied: it stands already, or is part of a larger update.")


def load(folder: str | Path) -> Receipt:
    """Read a receipt from an untrusted folder. Every tensor is held to its hash; nothing is unpickled, nothing kept in memory.

    Raises ReceiptError, CheckpointError.
    """
    path = Path(folder)
    said = facts.read(path / store.FACTS)
    for side in ("before", "after"):
        store.values(path, said, side)
    return Receipt(said, folder=path)
