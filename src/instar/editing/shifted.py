"""What a model says where one of its layers puts out something else at the subject."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from instar.editing.above import Above
from instar.editing.layout import Layer, Layout, Part
from instar.editing.past import Past
from instar.editing.rows import Rows


class Shifted:
    """Logits of rows under shifts of parts of `layer` at the subject, for weights that stay as they are.

    Nothing changes before the subject, nor below the layer, nor after the subject in the layer itself. So all that runs once,
    here; each `run` computes the layer at the subject alone, and the layers above it from the subject on. Without a past, whole
    rows run from the layer up.

    Args:
        past: of these rows, `Past.of`.

    Keeps 2 · L · B · S · D keys and values of S tokens before the subject, and B · U · D outputs of the layer after it.
    """

    def __init__(self, model: nn.Module, layout: Layout, rows: Rows, layer: Layer, past: Past | None, batch: int = 64) -> None:
        self.layer = layer
        rest = rows if past is None else rows.from_subject()
        apart = past is not None and rest.ids.shape[1] > 1
        self._at = Above(model, layout, rest.to_subject(), layer.index, batch, past=past) if apart else None
        self._above = Above(model, layout, rest, layer.index + apart, batch, past=past)
        self._past = None if past is None else past.above(layer.index)

    @property
    def target(self) -> Tensor:
        """int64 [B, U], the tokens that are predicted, and −1."""
        return self._above.rows.target

    def take(self, places: Tensor) -> Shifted:
        """The same for some of the rows."""
        some = copy.copy(self)
        some._at, some._above = None if self._at is None else self._at.take(places), self._above.take(places)
        some._past = None if self._past is None else self._past.take(places)
        return some

    def outputs(self, parts: Sequence[Part]) -> dict[Part, Tensor]:
        """What parts of the layer put out at the subject without a shift [B, D]."""
        one = self._at or self._above
        found = one.run(read={part: (self.layer.module(part), "out") for part in parts}, until=self.layer, past=self._past)[1]
        return {part: found[part] for part in parts}

    def run(self, shift: Mapping[Part, Tensor] | None = None) -> Tensor:
        """Logits [B, U, V] where targets are predicted. shift: of parts, [B, D]."""
        shift = shift or {}
        one = self._at or self._above
        change = {self.layer.module(part): one.at_subject(value) for part, value in shift.items()}
        below = self._above.below
        if self._at is None or below is None:
            return self._above.run(change=change, past=self._past)[0]
        if set(shift) == {"block"}:  # nothing of the layer is in the way
            state = below[:, 0] + shift["block"].to(below.dtype)
        else:
            read: dict[str, tuple[nn.Module, str]] = {"state": (self.layer.block, "out")}
            state = self._at.run(change=change, read=read, until=self.layer, past=self._past)[1]["state"]
        return self._above.run(below=torch.cat([state[:, None], below[:, 1:]], 1), past=self._past)[0]
