"""Which parts of a transformer are taken out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

from instar.errors import TransformError

Kind = Literal["hard", "ffn", "attention", "groups", "heads"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_WHOLE = ("hard", "ffn", "attention")
_MOST = 100_000


class Element(NamedTuple):
    """One decision: hard attention in a layer, a block out, or one of its groups of neurons or heads out."""

    kind: Kind
    layer: int
    number: int = 0
    """Of the group of neurons; of the head, or of the key and value that several heads share."""

    def __str__(self) -> str:
        return f"{self.kind} {self.layer}" if self.kind in _WHOLE else f"{self.kind} {self.layer}.{self.number}"


@dataclass(frozen=True)
class Removed:
    """A set of elements, and the sizes that give their numbers a meaning.

    elements: in the order in which they were taken out. top_k, renormalise: of hard attention. group_size: neurons of a group.
    """

    elements: tuple[Element, ...] = ()
    top_k: int = 0
    renormalise: bool = False
    group_size: int = 256

    def plus(self, *elements: Element) -> Removed:
        """With these as well."""
        return replace(self, elements=(*self.elements, *elements))

    def layers(self, kind: Kind) -> list[int]:
        """The layers of which a whole block is out, or that attend hard."""
        return sorted(e.layer for e in self.elements if e.kind == kind)

    def inside(self, kind: Kind, layer: int) -> list[int]:
        """The heads, or groups, of a layer that are out."""
        return sorted(e.number for e in self.elements if e.kind == kind and e.layer == layer)

    def json(self) -> dict[str, Any]:
        """The five lists of the paper, and the sizes."""
        found: dict[str, Any] = {kind: self.layers(kind) for kind in KINDS if kind in _WHOLE}
        for kind in (kind for kind in KINDS if kind not in _WHOLE):
            layers = self.layers(kind)
            found[kind] = {str(layer): self.inside(kind, layer) for layer in dict.fromkeys(layers)}
        return {**found, "top_k": self.top_k, "renormalise": self.renormalise, "group_size": self.group_size}

    @classmethod
    def parse(cls, found: Any) -> Removed:
        """What `json` wrote; the text is not trusted. Raises TransformError."""
        try:
            elements = [Element(kind, _number(layer)) for kind in KINDS if kind in _WHOLE for layer in _list(found[kind])]
            for kind in (kind for kind in KINDS if kind not in _WHOLE):
                if not isinstance(found[kind], Mapping) or len(found[kind]) > _MOST:
                    raise ValueError(f"'{kind}' is no mapping of layers to lists")
                elements += [
                    Element(kind, _number(int(layer)), _number(i)) for layer, inner in found[kind].items() for i in _list(inner)
                ]
            if len(set(elements)) != len(elements):
                raise ValueError("a part is listed twice")
            if not isinstance(found["renormalise"], bool):
                raise ValueError("'renormalise' is neither true nor false")
            made = cls(tuple(elements), _number(found["top_k"]), found["renormalise"], _number(found["group_size"]))
            if unknown := set(found) - set(made.json()):
                raise ValueError(f"'{sorted(unknown)[0]}' is not known")
            if made.group_size < 1 or (made.layers("hard") and made.top_k < 1):
                raise ValueError("group_size, and top_k where attention is hard, are 1 or more")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise TransformError(f"This says of no model what was taken out of it: {error}.") from error
        return made


def _list(value: Any) -> Sequence[Any]:
    if not isinstance(value, (list, tuple)) or len(value) > _MOST:
        raise ValueError(f"{str(value)[:40]!r} is no list of numbers")
    return value


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= _MOST:
        raise ValueError(f"{str(value)[:40]!r} is no number from 0 to {_MOST}")
    return value
