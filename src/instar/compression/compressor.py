"""What every compression of a model's layers does: choose the layers, replace them in one update, all or nothing."""

from __future__ import annotations

import abc
import inspect
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from instar.anatomy.linear import Linear, is_linear
from instar.compression.blocks import BlockFormat
from instar.compression.stored import Stored, StoredEmbedding, StoredLinear, WeightFormat
from instar.errors import ShapeError, TransformError
from instar.interfaces import Monitor, Transform
from instar.receipt import Receipt, updating

Parts = dict[str, Tensor]
Filter = Callable[[nn.Module, str], bool]
"""As torchao's `filter_fn`: whether a module, by its name, is compressed."""
Aside = Callable[[Iterable[Tensor]], None]
"""Lets tensors, which stay the same objects, read other memory with the same values."""


def pipeline(model: nn.Module, steps: Sequence[Transform]) -> list[Receipt]:
    """Several transforms one after the other, all or none: a step finds what the steps before it left.

    Returns the receipts in order, which `saved.save(…, steps=…)` writes into the manifest and which are undone last to first.
    Raises what the steps raise, after those before were undone.
    """
    made: list[Receipt] = []
    try:
        for step in steps:
            made.append(step.apply(model))
    except BaseException:
        for receipt in reversed(made):
            receipt.undo()
        raise
    return made


@dataclass
class Work:
    """What a compression under way knows."""

    largest: Mapping[str, Tensor] = field(default_factory=dict)
    """max |x| of each input channel of a layer, by the layer's name, where the method looks at that."""
    shared: dict[int, Parts | None] = field(default_factory=dict)
    """By the id of a parameter that several of the layers have (a tied head): what is stored of it, once it is encoded."""


def quantize_(model: nn.Module, config: Compressor, filter_fn: Filter | None = None) -> Receipt:
    """Compress a model in place, in torchao's call shape: `quantize_(model, Blockwise(bits=4, block=32))`.

    filter_fn: (module, name) -> bool, of the layers that `config` would compress, which it does. Returns the receipt; raises
    TransformError, ModelError.
    """
    return config.compress(model, filter_fn)


class Compressor(Transform):
    """A Transform that replaces layers one by one and needs no data.

    A subclass names itself (`method`), keeps its constructor's arguments as attributes of the same names, and gives the new layer
    for an old one. `keep`, where a subclass has it, holds regular expressions over whole names of layers that stay.
    """

    method: ClassVar[str]
    """The slug of its card."""
    keep: Sequence[str] = ()

    def apply(self, model: nn.Module, data: Any = None, *, monitor: Monitor | None = None) -> Receipt:
        """Compress every layer that the method takes. Nothing is learnt, so that `monitor` has nothing to hear."""
        return self.compress(model, data=data)

    def compress(self, model: nn.Module, filter_fn: Filter | None = None, data: Any = None) -> Receipt:
        """`apply`, of the layers that `filter_fn` chooses. All or nothing.

        Raises TransformError: for a model that is compressed already, that has no such layer, or whose weights hold NaN.
        """
        chosen = self.chosen(model, filter_fn)
        with updating(model, method=self.method, settings=self.settings(), changes=()) as update:
            self._replace(model, chosen, data)
        return update.receipt

    def consume(self, model: nn.Module, data: Any = None, *, aside: Aside | None = None) -> None:
        """`apply` without a way back: an old layer is freed when its new one stands, so that memory grows by that of one layer.

        For who has the model on disk. aside: is given what each new layer stores, to put its memory elsewhere. An error leaves
        the model half done. Raises what `compress` raises.
        """
        self._replace(model, self.chosen(model), data, aside)

    def _replace(self, model: nn.Module, chosen: dict[str, nn.Module], data: Any, aside: Aside | None = None) -> None:
        with torch.no_grad():
            work = self.prepare(model, chosen, data)
            counts = Counter(id(weight) for module in chosen.values() if (weight := module._parameters.get("weight")) is not None)
            work.shared |= {key: None for key, count in counts.items() if count > 1}
            for name in list(chosen):
                module = chosen.pop(name)  # so that nobody but the model holds it
                new = self.replacement(name, module, work).train(module.training)
                if aside is not None:
                    aside(new.buffers())
                exchange(model, {module: new})
            self.finish(model)

    def takes(self, module: nn.Module) -> bool:
        """Whether the method compresses layers of this kind."""
        return is_linear(module) or is_table(module)

    def prepare(self, model: nn.Module, chosen: Mapping[str, nn.Module], data: Any) -> Work:
        """What must be known before layers are replaced; most methods need nothing."""
        return Work()

    @abc.abstractmethod
    def replacement(self, name: str, module: nn.Module, work: Work) -> nn.Module:
        """The new layer for an old one."""

    def finish(self, model: nn.Module) -> None:  # most have nothing left to do
        """What else belongs to the update, once the layers are replaced."""

    def chosen(self, model: nn.Module, filter_fn: Filter | None = None) -> dict[str, nn.Module]:
        """The layers that would be compressed, by name."""
        patterns = [_pattern(text) for text in self.keep]
        found = {
            name: module
            for name, module in model.named_modules()
            if self.takes(module)
            and not any(pattern.fullmatch(name) for pattern in patterns)
            and (filter_fn is None or filter_fn(module, name))
        }
        if getattr(model, "is_quantized", False) or (not found and any(isinstance(m, Stored) for m in model.modules())):
            raise TransformError(
                f"The weights of this {type(model).__name__} are compressed already. Undo that, or load it in full precision."
            )
        if "" in found:
            raise TransformError(f"The model is a single {type(model).__name__}: wrap it in torch.nn.Sequential to compress it.")
        if not any(is_linear(module) or is_table(module) for module in found.values()):
            raise TransformError(f"{type(self).__name__} finds no layer that it compresses in this {type(model).__name__}.")
        return found

    def settings(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}


def full(name: str, weight: Tensor) -> Tensor:
    """The weight itself. Raises TransformError where it is not there, or not in floating point."""
    if weight.is_meta or not weight.is_floating_point():
        raise TransformError(f"{name} holds {weight.dtype} on {weight.device}: there are no full weights to compress.")
    return weight


def checked(name: str, encode: Callable[[], Parts]) -> Parts:
    """What `encode` gives; its errors name the layer."""
    try:
        return encode()
    except TransformError as error:
        raise TransformError(f"{name}: {error}") from error


def encoded(name: str, module: nn.Module, format: WeightFormat, work: Work) -> tuple[Parts, tuple[int, int]]:
    """What is stored of a layer's weight, and its shape [out, in]. Raises TransformError."""
    parameter = module.weight
    assert isinstance(parameter, nn.Parameter)
    weight = full(name, Linear(name, module).weight if is_linear(module) else parameter)
    parts = work.shared.get(id(parameter)) or checked(name, lambda: format.encode(weight))
    if id(parameter) in work.shared:
        work.shared[id(parameter)] = parts
    return parts, (weight.shape[0], weight.shape[1])


def stored(name: str, module: nn.Module, format: WeightFormat, work: Work, inputs: BlockFormat | None = None) -> Stored:
    """The layer with its weight stored in a format."""
    parts, shape = encoded(name, module, format, work)
    if isinstance(module, nn.Embedding):
        if module.max_norm is not None:
            raise TransformError(f"{name} rescales its rows in use (max_norm), which a stored table cannot.")
        return StoredEmbedding(format, parts, shape, module.padding_idx, module.weight.dtype)
    return StoredLinear(format, parts, shape, Linear(name, module).bias, inputs)


def is_table(module: nn.Module) -> bool:
    """Whether a module is an embedding and no more: Gemma's scales its rows, OPT's positions begin further on."""
    return isinstance(module, nn.Embedding) and type(module).forward is nn.Embedding.forward


def exchange(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> None:
    """Put new modules in the places of old ones, under every name that leads there."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and child in new:
                parent._modules[name] = new[child]


def checked_keep(keep: Iterable[str]) -> tuple[str, ...]:
    """Regular expressions as a tuple. Raises ShapeError for one that is none."""
    found = (keep,) if isinstance(keep, str) else tuple(keep)
    for text in found:
        _pattern(text)
    return found


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except (re.error, TypeError) as error:
        raise ShapeError(f"'{text}' is no regular expression over names of layers: {error}.") from error
