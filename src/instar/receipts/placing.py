"""Whether a model is in the state that a receipt expects, and where in it the bits go."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import nn

from instar.errors import ReceiptError
from instar.receipts import bits
from instar.receipts.facts import Facts, some
from instar.receipts.fingerprint import Entry, Table, combine, named, table
from instar.receipts.snapshot import Side, Sides, Slot
from instar.receipts.structure import class_name, modules


def require_state(model: nn.Module, sides: Sides, tables: Mapping[Side, Table], side: Side, receipt: str) -> None:
    """Raise ReceiptError unless the model that the update was made on is on this side, in bits and in objects.

    Tensors that were only moved (`model.to(device)`) are followed.
    """
    if differ := _differing(table(model), tables[side]):
        raise ReceiptError(f"The model was changed since receipt {receipt}, in {differ}. Undo that first; nothing was written.")
    now = named(model)
    if not all(d.stands(side) for d in sides.attributes if d.tree) or any(
        now[s.name][0] is not s.tensor for s in sides.get(side)
    ):
        raise ReceiptError(f"Modules or parameters of the model were replaced since receipt {receipt}. Nothing was written.")
    there = {id(slot.tensor): slot for slot in sides.get("before" if side == "after" else "after")}
    for slot in sides.get(side):
        if not slot.in_place():
            other = there.get(id(slot.tensor))
            if other is None or other.copy is None or not bits.same_place(other.data, slot.data):
                raise ReceiptError(
                    f"{slot.name} was moved since receipt {receipt}, and what it replaced was not. Move the model back first."
                )
            slot.data = other.data = slot.tensor.detach()
    if foreign := sides.foreign("before" if side == "after" else "after"):
        raise ReceiptError(f"{foreign[0]}, which receipt {receipt} keeps, was written by somebody else. Nothing was written.")


def sides_by_name(model: nn.Module, said: Facts, to: Side, contents: Callable[[Side], Mapping[str, bits.Copy]]) -> Sides:
    """Both sides of an update on a model that has the same names. Raises ReceiptError when the model does not fit."""
    lines = table(model)
    at: Side = "after" if to == "before" else "before"
    if said.structural and to == "before":
        raise ReceiptError(f"Receipt {said.id} changed the structure of the model ({_structure(said)}). {_ONLY}")
    wanted = _ignoring_hashes(said, to) if said.structural else {c.name: getattr(c, at) for c in said.changes}
    found: Mapping[str, Entry | None] = {name: lines.get(name) for name in wanted}
    rest = combine({name: line for name, line in lines.items() if name not in wanted})
    if said.structural:
        found = {name: line and replace(line, sha256="") for name, line in found.items()}
        here = modules(model)
        if (
            found != wanted
            or rest != said.rest
            or any(class_name(here.get(path)) != after for path, (_, after) in said.modules.items())
        ):
            raise ReceiptError(
                f"Receipt {said.id} changed the structure of its model ({_structure(said)}), and this one is not so. {_ONLY}"
            )
    elif found != wanted or rest != said.rest:
        if combine(lines) == (said.base if to == "before" else said.after):
            raise ReceiptError(f"The model is already as {to} receipt {said.id}. Nothing was written.")
        differ = _differing({n: line for n, line in found.items() if line}, {n: line for n, line in wanted.items() if line})
        where = differ or "tensors that the receipt does not touch"
        raise ReceiptError(f"The model is not as {at} receipt {said.id}: it differs in {where}. Nothing was written.")
    live, kept = named(model), contents(to)
    slots = {name: Slot.of(name, live[name][0], line) for name, line in lines.items() if name in wanted}
    target = [replace(slot, copy=kept[name]) for name, slot in slots.items()]
    present = list(slots.values())
    return Sides(target, present) if to == "before" else Sides(present, target)


_ONLY = (
    "A file brings back bits, no modules: undo it in the process that made it, make it again with its method, or load the model."
)


def _ignoring_hashes(said: Facts, to: Side) -> dict[str, Entry | None]:
    lines = {change.name: getattr(change, to) for change in said.changes}
    return {name: line and replace(line, sha256="") for name, line in lines.items()}


def _structure(said: Facts) -> str:
    what = [*said.modules, *said.attributes, *(c.name for c in said.changes if c.before is None or c.after is None)]
    what += [c.name for c in said.changes if c.before and c.after and c.before.shape != c.after.shape]
    return some(what) or "types of tensors"


def _differing(found: Mapping[str, Entry], expected: Mapping[str, Entry]) -> str:
    return some([name for name in sorted(found.keys() | expected.keys()) if found.get(name) != expected.get(name)])
