"""A model from one block upwards, with changes at the subject, reading what is wanted and no more."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from instar.editing.layout import Layer, Layout
from instar.editing.past import Past
from instar.editing.rows import Rows
from instar.editing.running import Change, call, in_place_of, on_input, on_output, stop, until_stopped


class Above:
    """A model from the block `first` upwards, for fixed rows: the blocks below run once, here.

    An edit of layers `first` and above changes nothing below, so that each step of an optimisation, and each pass between two
    edited layers, need only what lies above. Costs memory B · T · D for what the blocks below put out.

    Args:
        first: 0 for the whole model; the number of blocks for the head alone.
        past: what stands before the rows, where they begin at their subjects; `run` needs it as well.
    """

    def __init__(
        self, model: nn.Module, layout: Layout, rows: Rows, first: int, batch: int = 64, *, past: Past | None = None
    ) -> None:
        self.model, self.layout, self.rows = model, layout, rows
        self._skipped = [layer.block for layer in layout.layers[:first]]
        self._tuples = False
        below: list[Tensor] = []
        with torch.no_grad():
            for part in torch.arange(len(rows), device=rows.ids.device).split(batch) if first else ():
                given = {} if past is None else past.take(part).given(rows.mask[part])
                with self._last_output(below.append), until_stopped():
                    call(model, rows.ids[part], rows.mask[part], **given)
        self.below = torch.cat(below) if below else None
        """What the block below `first` puts out [B, T, D]."""

    def take(self, places: Tensor) -> Above:
        """The same for some of the rows."""
        some = copy.copy(self)
        some.rows = self.rows.take(places)
        some.below = None if self.below is None else self.below[places, : some.rows.ids.shape[1]]
        return some

    def run(
        self,
        *,
        change: Mapping[nn.Module, Change] | None = None,
        read: Mapping[str, tuple[nn.Module, str]] | None = None,
        until: Layer | None = None,
        below: Tensor | None = None,
        past: Past | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits [B, U, V] where targets are predicted, and what was read at the subject [B, ·], by name.

        change: of outputs of modules. read: name -> (module, "in" or "out"), after the changes. until: stop after this layer; the
        logits are then empty. below: in place of what the blocks below put out. past: where the rows begin at their subjects.
        """
        rows = self.rows
        each = torch.arange(len(rows), device=rows.ids.device)
        found: dict[str, Tensor] = {}
        with contextlib.ExitStack() as stack:
            if self.below is not None:
                stack.enter_context(self._resumed(self.below if below is None else below))
            for module, one in (change or {}).items():
                stack.enter_context(on_output(module, one))
            for name, (module, side) in (read or {}).items():

                def keep(value: Tensor, name: str = name) -> None:
                    found[name] = value[each, rows.subject]

                stack.enter_context(on_output(module, keep) if side == "out" else on_input(module, keep))
            if until is not None:
                stack.enter_context(on_output(until.block, stop))
            elif self.layout.head is not None:
                stack.enter_context(on_input(self.layout.head, lambda hidden: hidden[each[:, None], rows.at]))
            logits = torch.empty(0)
            with until_stopped():
                given = {} if past is None else past.given(rows.mask)
                logits = call(self.model, rows.ids, rows.mask, **given)
                if self.layout.head is None:
                    logits = logits[each[:, None], rows.at]
        return logits, found

    def at_subject(self, vectors: Tensor) -> Change:
        """Adds vectors [B, ·] to an output at the subject of each row."""
        each, subject = torch.arange(len(self.rows), device=vectors.device), self.rows.subject
        return lambda value: value.index_put((each, subject), vectors.to(value.dtype), accumulate=True)

    @contextlib.contextmanager
    def _last_output(self, keep: Callable[[Tensor], object]) -> Iterator[None]:
        """Runs the blocks below, and keeps what the last of them puts out."""

        def take(module: nn.Module, args: Any, output: Any) -> None:
            self._tuples = isinstance(output, tuple)
            value = output[0] if self._tuples else output
            keep(value.detach())
            stop(value)

        handle = self._skipped[-1].register_forward_hook(take)
        try:
            yield
        finally:
            handle.remove()

    @contextlib.contextmanager
    def _resumed(self, below: Tensor) -> Iterator[None]:
        """The blocks below do nothing, and the last of them puts out what it did."""
        found = (below,) if self._tuples else below
        with in_place_of(self._skipped, lambda *args, **kwargs: found):
            yield
