"""Where an edit reads and writes in a model: in each layer the block, and the last linear layers of attention and of the FFN."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from instar.anatomy import Linear, anatomy
from instar.anatomy.linear import is_linear
from instar.errors import EditError, ModelError, ShapeError

Part = Literal["ffn", "attention", "block"]
Layers = Literal["auto", "traced"] | Sequence[int]
_PUBLISHED = {
    ("gpt2", 48): (13, 17),
    ("gptj", 28): (3, 8),
    ("gpt_neox", 44): (6, 10),
    ("llama", 32): (4, 8),
}
"""(model_type, depth) -> first and last layer: GPT2-XL, GPT-J and NeoX-20B of MEMIT and PMET, Llama-2-7B."""
_PUBLISHED_END, _PUBLISHED_COUNT = 0.3, 5


@dataclass(frozen=True)
class Parts:
    """How to find the parts of a model that `instar.anatomy` does not know: functions (model, layer) -> module."""

    layers: int
    block: Callable[[nn.Module, int], nn.Module]
    attention_out: Callable[[nn.Module, int], nn.Module]
    ffn_out: Callable[[nn.Module, int], nn.Module]


@dataclass(frozen=True)
class Layer:
    """One layer. The output of its block is x + a + m, a of `attention`, m of `ffn`."""

    index: int
    block: nn.Module
    attention: Linear
    ffn: Linear

    def module(self, part: Part) -> nn.Module:
        """What puts out a, m or the whole."""
        return self.block if part == "block" else self.linear(part).module

    def linear(self, part: Part) -> Linear:
        """What is written."""
        if part == "block":
            raise ShapeError("A block has no weight of its own; what is written is ffn or attention.")
        return self.ffn if part == "ffn" else self.attention


@dataclass(frozen=True)
class Layout:
    """The layers of a model, the lowest first, and its head where that is known."""

    layers: Sequence[Layer]
    head: nn.Module | None

    def chosen(self, layers: Sequence[int]) -> list[Layer]:
        """These layers, ascending. Raises EditError for none, for one twice, and for one that is not there."""
        wanted, depth = sorted(layers), len(self.layers)
        if not wanted or len(set(wanted)) < len(wanted) or not all(isinstance(i, int) and 0 <= i < depth for i in wanted):
            raise EditError(f"layers expects different numbers from 0 to {depth - 1}; received {list(layers)}.")
        return [self.layers[i] for i in wanted]

    def usual(self, kind: str = "") -> list[int]:
        """The published layers of models that were studied, by their model_type and depth; else five that end at 30 % of it."""
        if (kind, len(self.layers)) in _PUBLISHED:
            first, last = _PUBLISHED[kind, len(self.layers)]
            return list(range(first, last + 1))
        last = max(0, round(_PUBLISHED_END * len(self.layers)) - 1)
        return list(range(max(0, last - _PUBLISHED_COUNT + 1), last + 1))


def layout(model: nn.Module, parts: Parts | None = None) -> Layout:
    """The layout of a causal language model. Raises ModelError where parts are not found or the model has no head."""
    if parts is None:
        found = anatomy(model)
        if found.head is None:
            raise ModelError(f"{type(model).__name__} has no language head: load it with AutoModelForCausalLM.")
        return Layout([Layer(b.index, b.module, b.attention_out, b.ffn_out) for b in found.blocks], found.head.module)
    names = {id(module): name for name, module in model.named_modules()}
    layers = []
    for i in range(parts.layers):
        block, attention, ffn = (give(model, i) for give in (parts.block, parts.attention_out, parts.ffn_out))
        for module in (attention, ffn):
            if not is_linear(module) or id(module) not in names:
                raise ModelError(
                    f"The parts of layer {i} hold {type(module).__name__}; expected a Linear or Conv1D of this model."
                )
        layers.append(Layer(i, block, Linear(names[id(attention)], attention), Linear(names[id(ffn)], ffn)))
    return Layout(layers, None)
