"""Which updates stand on a model, in which order: the last one in is the first one out."""

from __future__ import annotations

import weakref
from dataclasses import dataclass

from torch import nn

from instar.errors import ReceiptError


@dataclass(frozen=True)
class Mark:
    """An update that stands. It holds no tensors: a receipt that nobody keeps frees its memory."""

    id: str
    method: str


_MARKS: weakref.WeakKeyDictionary[nn.Module, list[Mark]] = weakref.WeakKeyDictionary()


def marks(model: nn.Module) -> list[Mark]:
    """The updates that stand on this very object, oldest first; the caller may change the list."""
    return _MARKS.setdefault(model, [])


def require_last(model: nn.Module, id: str, method: str) -> None:
    """Raise ReceiptError when another update stands on top. A model on which none stands is judged by its fingerprint alone."""
    found = marks(model)
    if found and found[-1].id != id:
        top = found[-1]
        what = f"{top.id} ({top.method})" if top.id else f"an update that is under way ({top.method})"
        raise ReceiptError(f"Receipt {id} ({method}) is not the last: {what} came later and still stands. Undo that one first.")
