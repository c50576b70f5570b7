"""How updates are made: a transaction around the code that changes the model."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from torch import nn

from instar.errors import ReceiptError, UnknownNameError
from instar.receipts import facts
from instar.receipts.facts import Change, Facts
from instar.receipts.fingerprint import Table, combine, named
from instar.receipts.receipt import Receipt
from instar.receipts.snapshot import Sides, Snapshot, compare
from instar.receipts.standing import Mark, marks
from instar.receipts.structure import class_name, modules

Names = Iterable[str] | Callable[[str], bool]


class Update:
    """An update under way: the target of `with updating(…) as update`."""

    def __init__(self, snapshot: Snapshot, aliases: Mapping[str, str]) -> None:
        self._snapshot: Snapshot | None = snapshot
        self._aliases = aliases
        self._receipt: Receipt | None = None

    def declare(self, *names: str) -> None:
        """Copy these tensors now, before they are written in place. Raises UnknownNameError, ReceiptError if it is too late."""
        if self._snapshot is None:
            raise ReceiptError("The update has ended: declare a tensor inside the block, before it is written.")
        for name in _known(names, self._aliases):
            self._snapshot.copy(name)

    @property
    def receipt(self) -> Receipt:
        """The receipt, once the block has ended well."""
        if self._receipt is None:
            raise ReceiptError("An update has its receipt when its block has ended without an error.")
        return self._receipt


@contextlib.contextmanager
def updating(
    model: nn.Module,
    *,
    method: str,
    settings: Mapping[str, Any] | None = None,
    changes: Names | None = None,
    title: str = "",
    source: str | None = None,
) -> Iterator[Update]:
    """Change `model` in place inside the block: all of it, or nothing.

    Args:
        method: its name, such as the slug of a card. title: the same for people. settings: what JSON can keep.
        changes: the tensors that will be *written in place* (names, or a function of a name); only these are copied, so
            memory is theirs, and that nothing else was written is verified. More are declared on the way with
            `update.declare(name)`. Tensors that are replaced (a new Parameter, a new `.data`) need no copy and no name.
            None copies the whole model, which doubles its memory.
        source: where the model came from; by default its `name_or_path`, where it has one.

    Costs two passes over the bytes of the model (SHA-256, about 0.8 s/GB a core each).
    When the block raises, the model is put back (bits, modules, flags, hooks) and the error goes on.
    Raises ReceiptError for a tensor that was written undeclared: everything else is put back, and the message names it.
    UnknownNameError for a name that is no tensor of the model; ReceiptError for settings or tensors that cannot be kept.
    """
    plain = facts.settings(settings)
    aliases = _aliases(model)
    if changes is None or callable(changes):
        snapshot = Snapshot(model, changes or (lambda name: True))
    else:
        snapshot = Snapshot(model, set(_known(changes, aliases)).__contains__)
    origin = getattr(model, "name_or_path", "") if source is None else source
    found = marks(model)
    depth = len(found)
    parent = found[-1].id if found else ""
    update = Update(snapshot, aliases)
    start, when = time.perf_counter(), datetime.now(UTC).isoformat(timespec="seconds")
    try:
        found.append(Mark("", method))
        yield update
        seconds = time.perf_counter() - start
        sides, table, moved, undeclared = compare(snapshot, model)
        if undeclared:
            raise ReceiptError(f"{', '.join(undeclared)} was written without being declared in changes=.")
        said = Facts(
            method=method,
            title=title or method,
            settings=plain,
            time=when,
            seconds=seconds,
            source=str(origin),
            parent=parent,
            base=combine(snapshot.table),
            after=combine(table),
            **_seen(snapshot, model, sides, table, moved),
        )
        update._receipt = Receipt._made(said, model, sides, {"before": snapshot.table, "after": table})
        found[depth:] = [Mark(said.id, method)]
    except BaseException as error:
        update._receipt = None
        del found[depth:]
        if lost := snapshot.restore():
            raise ReceiptError(
                f"{', '.join(lost)} was written without being declared, so there was no copy: it keeps what was written, and "
                "everything else is as before the update. Load the model again; name the tensor in changes=, or leave changes "
                "out to have everything copied."
            ) from error
        raise
    finally:
        update._snapshot = None  # whoever keeps `update` does not keep the copies


def _seen(snapshot: Snapshot, model: nn.Module, sides: Sides, table: Table, moved: dict[str, str]) -> dict[str, Any]:
    """The facts about the difference between the snapshot and the model."""
    # A tensor that only moved to another name is no change under either name.
    same = [(old, new) for old, new in moved.items() if snapshot.slots[old].entry.sha256 == table[new].sha256]
    before = {name: line for name, line in snapshot.table.items() if name not in {old for old, _ in same}}
    after = {name: line for name, line in table.items() if name not in {new for _, new in same}}
    names = [name for name in sorted(before.keys() | after.keys()) if before.get(name) != after.get(name)]
    then, now = snapshot.modules, modules(model)
    replaced = [path for path in sorted(then.keys() | now.keys()) if then.get(path) is not now.get(path)]
    return {
        "rest": combine({name: line for name, line in table.items() if name not in names}),
        "changes": tuple(Change(name, before.get(name), after.get(name)) for name in names),
        "moved": moved,
        "modules": {path: (class_name(then.get(path)), class_name(now.get(path))) for path in replaced},
        "attributes": tuple(sorted({d.address for d in sides.attributes if d.matters})),
    }


def _aliases(model: nn.Module) -> dict[str, str]:
    """Every name that leads to a tensor -> its first name."""
    first = {id(tensor): name for name, (tensor, _) in named(model).items()}
    pairs = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: first[id(tensor)] for name, tensor in pairs}


def _known(names: Iterable[str], aliases: Mapping[str, str]) -> list[str]:
    names = [names] if isinstance(names, str) else list(names)
    for name in names:
        if name not in aliases:
            raise UnknownNameError.among("tensor of this model", name, aliases)
    return [aliases[name] for name in names]
