"""The heads of a sequence of updates."""

from __future__ import annotations

from torch import Tensor

from instar.interfaces import CompatibleHead


def of(head: CompatibleHead) -> list[CompatibleHead]:
    """The head and all before it, the oldest first."""
    links = [head]
    while links[-1].previous is not None:
        links.append(links[-1].previous)
    return links[::-1]


def own(head: CompatibleHead) -> dict[str, Tensor]:
    """The tensors that a head keeps, without those of the heads before it."""
    return {name: value for name, value in head.state_dict().items() if not name.startswith("previous.")}


def nbytes(head: CompatibleHead) -> int:
    """Bytes of its own tensors."""
    return sum(value.numel() * value.element_size() for value in own(head).values())
