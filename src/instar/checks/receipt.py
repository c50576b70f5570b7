"""The contract of a receipt, for any `update(model) -> Receipt`: an editor, an adapter's attach, a transform.

>>> from instar.checks.receipt import check_receipts
>>> check_receipts(lambda: AutoModel.from_pretrained(folder), lambda model: my_edit(model))              # doctest: +SKIP

Each check builds its own model and can be called alone. What a model was before is kept here by other means than the receipt's.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from torch import nn

from instar.checks import Outcome
from instar.checks.arguments import refused
from instar.checks.witness import Interrupt, contents, first_names, flip, picture, require, same, tensors
from instar.errors import ContractError, ReceiptError
from instar.receipt import Receipt, fingerprint, load, updating

Build = Callable[[], nn.Module]
"""Builds the same model, to the bit, at every call."""
Make = Callable[[nn.Module], Receipt]
"""Updates a model in place."""

_INTERRUPTS = 9
"""Places in an update at which it is interrupted."""


def check_facts(build: Build, update: Make) -> None:
    """The receipt stands, and its two fingerprints are those of the model before and after."""
    model = build()
    base = fingerprint(model)
    receipt = _made(model, update)
    if not receipt.standing:
        raise ContractError(f"{receipt} does not stand on the model that was updated: return the receipt of `updating`.")
    said = receipt.facts
    for name, told, found in (("base", said.base, base), ("after", said.after, fingerprint(model))):
        if told != found:
            raise ContractError(f"The receipt says {name}={told[:12]}, the model {found[:12]}: write only inside `updating`.")


def check_only_declared(build: Build, update: Make) -> None:
    """The tensors whose bits differ are those that the receipt lists, and no others."""
    model = build()
    before = contents(model)
    receipt = _made(model, update)
    after = contents(model)
    differ = {name for name in before.keys() | after.keys() if not same(before.get(name), after.get(name))}
    listed = {change.name for change in receipt.changes}
    known = {*listed, *receipt.facts.moved, *receipt.facts.moved.values()}
    # A tensor that several names share is listed under its first; the others differ with it.
    shared = {name for state in (before, after) for name, first in first_names(state).items() if first in known}
    # A further name that went with its module, while the tensor lives on under its first name: the module is listed.
    gone = {name for name, first in first_names(before).items() if name != first and _module(name) in receipt.facts.modules}
    if hidden := sorted(differ - known - shared - gone):
        raise ContractError(f"{hidden[0]} changed, but the receipt does not list it: write it inside `updating`.")
    if idle := sorted(listed - differ):
        raise ContractError(f"The receipt lists {idle[0]}, which did not change.")


def check_undo(build: Build, update: Make) -> None:
    """Undo restores bits, objects, modules and flags; a second undo is refused."""
    model = build()
    before = picture(model)
    receipt = _made(model, update)
    receipt.undo()
    require(model, before, "After undo")
    refused("A second undo", receipt.undo, ReceiptError)
    require(model, before, "After the refused second undo")


def check_redo(build: Build, update: Make) -> None:
    """After undo, `apply` gives the updated model back, and undo works again."""
    model = build()
    before = picture(model)
    receipt = _made(model, update)
    after = picture(model)
    receipt.undo()
    receipt.apply()
    require(model, after, "After undo and apply")
    with receipt.reverted():
        require(model, before, "Inside `reverted`")
    require(model, after, "After `reverted`")


def check_context(build: Build, update: Make) -> None:
    """`with receipt:` undoes at the end, also when the block raises."""
    model = build()
    before = picture(model)
    with _made(model, update):
        pass
    require(model, before, "After `with receipt`")
    try:
        with _made(model, update):
            raise _Stop
    except _Stop:
        require(model, before, "After `with receipt` that raised")


def check_order(build: Build, update: Make) -> None:
    """Undo is refused while a later update stands, and works after that one is undone."""
    model = build()
    before = picture(model)
    first = _made(model, update)
    second = _nudge(model)
    both = picture(model)
    refused("Undo of the first of two updates", first.undo, ReceiptError)
    require(model, both, "After the refused undo")
    second.undo()
    first.undo()
    require(model, before, "After both undos")


def check_refusal_after_change(build: Build, update: Make) -> None:
    """Undo is refused when any one bit of the model changed since, in a tensor of the update or in another."""
    model = build()
    before = picture(model)
    receipt = _made(model, update)
    touched = {change.name for change in receipt.changes}
    names = [name for name, tensor in tensors(model).items() if tensor.numel()]
    chosen = [next((n for n in names if n in touched), None), next((n for n in names if n not in touched), None)]
    for name in filter(None, chosen):
        flip(model, name)
        changed = picture(model)
        refused(f"Undo after one bit of {name} changed", receipt.undo, ReceiptError)
        require(model, changed, "After the refused undo")
        flip(model, name)
    receipt.undo()
    require(model, before, "After undo")


def check_interrupted(build: Build, update: Make) -> None:
    """An interrupt at any operation of the update leaves the model exactly as it was."""
    counter, model = Interrupt(-1), build()
    with counter:
        _made(model, update)
    for number in range(_INTERRUPTS):
        at = counter.seen * number // (_INTERRUPTS - 1) if number < _INTERRUPTS - 1 else counter.seen - 1
        model = build()
        before = picture(model)
        try:
            with Interrupt(at):
                update(model)
        except KeyboardInterrupt:
            require(model, before, f"After an interrupt at operation {at} of {counter.seen}")


def check_save_apply(build: Build, update: Make) -> None:
    """A receipt from a folder takes a fresh model to the updated bits and back, or says that it cannot carry the structure."""
    model = build()
    receipt = _made(model, update)
    after = contents(model)
    with tempfile.TemporaryDirectory() as folder:
        read = load(receipt.save(Path(folder) / "receipt"))
        if read.facts != receipt.facts:
            raise ContractError("A receipt that was saved and loaded says something else.")
        fresh = build()
        before = picture(fresh)
        if receipt.facts.structural:
            refused("Applying a change of structure to a model without it", lambda: read.apply(fresh), ReceiptError)
            require(fresh, before, "After the refused apply")
            return
        read.apply(fresh)
        found = contents(fresh)
        if not all(same(found.get(name), one) for name, one in after.items()):
            raise ContractError("A loaded receipt applied to a fresh model gives other bits than the update itself.")
        read.undo()
        require(fresh, before, "After apply and undo of a loaded receipt")


CONTRACT: tuple[Callable[[Build, Make], None], ...] = (
    *(check_facts, check_only_declared, check_undo, check_redo, check_context, check_order),
    *(check_refusal_after_change, check_interrupted, check_save_apply),
)


def check_receipts(build: Build, update: Make) -> list[Outcome]:
    """Run the whole contract. A crash inside a check is a failed outcome that names the exception."""
    outcomes = []
    for one in CONTRACT:
        start, message = time.perf_counter(), ""
        try:
            one(build, update)
        except ContractError as error:
            message = str(error)
        except Exception as error:  # whatever a stranger's code raises is a finding
            message = f"raised {type(error).__name__}: {error}"
        name = one.__name__.removeprefix("check_")
        outcomes.append(Outcome(name, "failed" if message else "passed", message, time.perf_counter() - start))
    return outcomes


def _module(name: str) -> str:
    return name.rpartition(".")[0]


class _Stop(Exception):  # noqa: N818 - no error
    pass


def _made(model: nn.Module, update: Make) -> Receipt:
    receipt = update(model)
    if not isinstance(receipt, Receipt):
        raise ContractError(f"The update returned {type(receipt).__name__}; it must return an instar.receipt.Receipt.")
    return receipt


def _nudge(model: nn.Module) -> Receipt:
    """A second update, of one bit."""
    name = next(name for name, (tensor, *_) in contents(model).items() if tensor.numel())
    with updating(model, method="nudge", changes=[name]) as update:
        flip(model, name)
    return update.receipt
