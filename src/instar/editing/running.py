"""Running a part of a model: from one block upwards, with changes at the subject, reading what is wanted and no more."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from instar.editing.layout import Layer, Layout
from instar.editing.rows import Rows
from instar.errors import ModelError

Change = Callable[[Tensor], Tensor]
"""The output of a module [B, T, ·] -> another one; never in place, since gradients need the first."""


_CACHES = ("cache", "past_key_values")
"""How `transformers` calls keys and values, now and before."""


class _Enough(Exception):  # noqa: N818 - no error
    """Nothing above this place is wanted."""


@contextlib.contextmanager
def resting(model: nn.Module) -> Iterator[None]:
    """Dropout off; afterwards every module is in the mode that it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@dataclass
class Past:
    """What stands before the subject of each row, as keys and values; and the rows from the subject on."""

    name: str
    """Of the argument that takes them."""
    layers: list[tuple[Tensor, Tensor]]
    """Of every layer [B, H, S, d]."""
    mask: Tensor
    """int64 [B, S]: 1 for a token before the subject."""
    rest: Rows
    columns: Tensor
    """int64 [B, U]: where the rest stood."""

    @classmethod
    def of(cls, model: nn.Module, rows: Rows, batch: int) -> Past | None:
        """None where nothing stands before, or the model does not take keys and values with the places of what follows them."""
        known = inspect.signature(model.forward).parameters
        before, name = int(rows.subject.max()), next((one for one in _CACHES if one in known), None)
        if not before or name is None or "position_ids" not in known:
            return None
        parts: list[list[tuple[Tensor, Tensor]]] = []
        with torch.no_grad():
            for part in torch.arange(len(rows), device=rows.ids.device).split(batch):
                ids = rows.ids[part, :before]
                found = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True)
                cache: Any = getattr(found, name, None)
                if not hasattr(cache, "layers"):
                    return None
                parts.append([(layer.keys, layer.values) for layer in cache.layers])
        layers = [(torch.cat([one[0] for one in same]), torch.cat([one[1] for one in same])) for same in zip(*parts, strict=True)]
        width = rows.ids.shape[1]
        columns = rows.subject[:, None] + torch.arange(int((rows.mask.sum(1) - rows.subject).max()), device=rows.ids.device)
        inside = columns < width
        columns = columns.clamp(max=width - 1)
        rest = Rows(
            rows.ids.gather(1, columns),
            rows.mask.gather(1, columns) * inside,
            torch.zeros_like(rows.subject),
            (rows.at - rows.subject[:, None]).clamp(min=0),
            rows.target,
        )
        mask = (torch.arange(before, device=rows.ids.device) < rows.subject[:, None]).long()
        return cls(name, layers, mask, rest, columns)

    def given(self, places: Tensor | None, rows: Rows) -> dict[str, Any]:
        """Arguments of the model for some of the rows: fresh keys and values, since the model appends to them."""
        from transformers import DynamicCache  # the model is one of these

        chosen = slice(None) if places is None else places
        cache = DynamicCache()
        for number, (keys, values) in enumerate(self.layers):
            cache.update(keys[chosen], values[chosen], number)
        return {
            self.name: cache,
            "attention_mask": torch.cat([self.mask[chosen], rows.mask], 1),
            "position_ids": self.columns[chosen][:, : rows.ids.shape[1]],
        }


class Above:
    """A model from the block `first` upwards, for fixed rows: the blocks below run once, here.

    An edit of layers `first` and above changes nothing below, so that each step of an optimisation, and each pass between two
    edited layers, need only what lies above. Costs memory B · T · D for what the block receives.

    Args:
        frozen: the weights stay as they are while this is used. Then what stands before the subject runs once as well, and is
            kept as keys and values (2 · L · B · T · D), where the model takes those and `position_ids`; others run whole rows.
    """

    def __init__(
        self, model: nn.Module, layout: Layout, rows: Rows, first: int, batch: int = 256, *, frozen: bool = False
    ) -> None:
        self.model, self.layout, self.rows, self.first = model, layout, rows, first
        self._tuples = False
        self._past: Past | None = None
        below: list[Tensor] = []
        with torch.no_grad():
            for part in torch.arange(len(rows), device=rows.ids.device).split(batch) if first else ():
                with self._first_input(below.append):
                    call(model, rows.ids[part], rows.mask[part])
        self.below = torch.cat(below) if below else None
        if frozen and (past := Past.of(model, rows, batch)) is not None:
            self._past, self.rows = past, past.rest
            if self.below is not None:
                self.below = self.below.gather(1, past.columns[..., None].expand(-1, -1, self.below.shape[2]))

    def run(
        self,
        places: Tensor | None = None,
        *,
        change: Mapping[nn.Module, Change] | None = None,
        read: Mapping[str, tuple[nn.Module, str]] | None = None,
        until: Layer | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits [B, U, V] where targets are predicted, and what was read at the subject [B, ·], by name.

        places: of the rows to run; all by default. change: of outputs of modules. read: name -> (module, "in" or "out"), after
        the changes. until: stop after this layer; the logits are then empty.
        """
        rows = self.rows if places is None else self.rows.take(places)
        width = rows.ids.shape[1]
        each = torch.arange(len(rows), device=rows.ids.device)
        found: dict[str, Tensor] = {}
        with contextlib.ExitStack() as stack:
            if self.below is not None:
                below = self.below if places is None else self.below[places]
                stack.enter_context(self._resumed(below[:, :width]))
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
            try:
                given = {} if self._past is None else self._past.given(places, rows)
                logits = call(self.model, rows.ids, rows.mask, **given)
            except _Enough:
                return torch.empty(0), found
        return (logits if self.layout.head is not None else logits[each[:, None], rows.at]), found

    def at_subject(self, places: Tensor | None, vectors: Tensor) -> Change:
        """Adds vectors [B, ·] to an output at the subject of each row."""
        subject = self.rows.subject if places is None else self.rows.subject[places]
        each = torch.arange(len(subject), device=subject.device)
        return lambda value: value.index_put((each, subject), vectors.to(value.dtype), accumulate=True)

    @contextlib.contextmanager
    def _first_input(self, keep: Callable[[Tensor], object]) -> Iterator[None]:
        """Runs up to the block, and keeps what it receives."""

        def seen(module: nn.Module, args: Any, output: Any) -> None:
            self._tuples = isinstance(output, tuple)

        def take(value: Tensor) -> None:
            keep(value.detach())
            raise _Enough

        below = self.layout.layers[self.first - 1].block.register_forward_hook(seen)
        try:
            with on_input(self.layout.layers[self.first].block, take), contextlib.suppress(_Enough):
                yield
        finally:
            below.remove()

    @contextlib.contextmanager
    def _resumed(self, below: Tensor) -> Iterator[None]:
        """The blocks below pass on what they get, and the block `first` gets what it got."""
        skipped = [layer.block for layer in self.layout.layers[: self.first]]
        tuples = self._tuples

        def pass_on(*args: Any, **kwargs: Any) -> Any:
            value = args[0] if args else kwargs["hidden_states"]
            return (value,) if tuples else value

        try:
            for block in skipped:
                block.forward = pass_on
            with on_input(self.layout.layers[self.first].block, lambda value: below):
                yield
        finally:
            for block in skipped:
                block.__dict__.pop("forward", None)


@contextlib.contextmanager
def on_output(module: nn.Module, change: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Sees, and may replace, the output of a module: a tensor, or the first of a tuple (blocks of older `transformers`)."""

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        value = output[0] if isinstance(output, tuple) else output
        other = change(value)
        if other is None:
            return None
        return (other, *output[1:]) if isinstance(output, tuple) else other

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def on_input(module: nn.Module, change: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Sees, and may replace, the first input of a module."""

    def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
        value = args[0] if args else kwargs["hidden_states"]
        other = change(value)
        if other is None:
            return None
        return ((other, *args[1:]), kwargs) if args else ((), {**kwargs, "hidden_states": other})

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def stop(value: Tensor) -> None:
    """As a change: ends the run here; `until_stopped` waits for it."""
    raise _Enough


def until_stopped() -> contextlib.suppress:
    """The context of a run that ends at `stop`."""
    return contextlib.suppress(_Enough)


def call(model: nn.Module, ids: Tensor, mask: Tensor, **given: Any) -> Tensor:
    """Logits of a model of `transformers`, or of any module that takes input_ids and attention_mask."""
    given = {"attention_mask": mask, **({"use_cache": False} if hasattr(model, "config") else {}), **given}
    found = model(input_ids=ids, **given)
    logits = getattr(found, "logits", found[0] if isinstance(found, tuple) else found)
    if not isinstance(logits, Tensor):
        raise ModelError(f"{type(model).__name__} gives {type(found).__name__}; expected logits, or an output that holds them.")
    return logits
