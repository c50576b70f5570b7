"""The parts of a transformer that can be taken out, and what each costs."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from instar.anatomy import Anatomy, Block, Linear, anatomy
from instar.compression.pruning.removed import Element, Removed
from instar.errors import ModelError, TransformError

STANDING = "instar_removed"
"""The attribute of a model that says what was cut out of it."""
_STACKED = re.compile(r"(^|\.)(c_attn|Wqkv)$")
_BY_HEAD = re.compile(r"(^|\.)query_key_value$")
_FROM_OUTSIDE = {"alibi", "position_bias"}
"""Arguments of attention that bring a number for each head."""


@dataclass(frozen=True)
class Layout:
    """The blocks of a model, and the elements in them.

    Heads that share a key and a value are one element. A layer has heads to take out where query, key and value are layers of
    their own, or one layer whose order of rows is known, and where no norm runs over all heads at once; blocks and groups of
    neurons can be taken out of every model that `instar.anatomy` knows.
    """

    parts: Anatomy
    group_size: int
    heads: Sequence[int]
    """Elements of attention in each layer; 0 where heads cannot be taken out alone."""
    groups: Sequence[int]
    """Groups of neurons in each layer; the last may be smaller."""

    @property
    def depth(self) -> int:
        return len(self.parts.blocks)

    def core(self, layer: int) -> str:
        """The name of the module that holds query, key and value: the one that attends."""
        return self.parts.blocks[layer].attention_in[0].name.rpartition(".")[0]

    def width(self, layer: int) -> int:
        """Columns of the output of attention that belong to one element."""
        return self.parts.blocks[layer].attention_out.inputs // self.parts.kv_heads

    def neurons(self, layer: int, groups: Iterable[int]) -> torch.Tensor:
        """bool [hidden]: the neurons of these groups."""
        chosen = torch.zeros(self.parts.blocks[layer].ffn_out.inputs, dtype=torch.bool)
        for group in groups:
            chosen[group * self.group_size : (group + 1) * self.group_size] = True
        return chosen

    def columns(self, layer: int, heads: Iterable[int]) -> torch.Tensor:
        """bool [heads · head width]: the inputs of the output of attention that come from these elements."""
        width = self.width(layer)
        chosen = torch.zeros(self.parts.blocks[layer].attention_out.inputs, dtype=torch.bool)
        for head in heads:
            chosen[head * width : (head + 1) * width] = True
        return chosen

    def fine(self, layer: int) -> list[Element]:
        """Groups and heads of a layer."""
        found = [Element("groups", layer, i) for i in range(self.groups[layer])]
        return found + [Element("heads", layer, i) for i in range(self.heads[layer])]

    def flops(self, removed: Removed) -> int:
        """FLOPs a token of the linear layers of all blocks, without what is out; attention itself is not counted."""
        total = 0
        for layer, block in enumerate(self.parts.blocks):
            if layer not in removed.layers("attention"):
                gone = int(self.columns(layer, removed.inside("heads", layer)).sum()) / block.attention_out.inputs
                total += round((1 - gone) * _flops([*block.attention_in, block.attention_out]))
            if layer not in removed.layers("ffn"):
                gone = int(self.neurons(layer, removed.inside("groups", layer)).sum()) / block.ffn_out.inputs
                total += round((1 - gone) * _flops([*block.ffn_in, block.ffn_out]))
        return total

    def share(self, removed: Removed) -> float:
        """`flops` as a fraction of those of the whole model."""
        return self.flops(removed) / self.flops(Removed(group_size=self.group_size))

    def check(self, removed: Removed) -> None:
        """Raise TransformError for elements that this model does not have, or that are listed twice."""
        if removed.group_size != self.group_size:
            raise TransformError(f"The groups are of {removed.group_size} neurons, expected were {self.group_size}.")
        if len(set(removed.elements)) != len(removed.elements):
            raise TransformError("A part that is to be taken out is listed twice.")
        for element in removed.elements:
            inside = {"groups": self.groups, "heads": self.heads}.get(element.kind)
            known = element.layer < self.depth and (element.number < inside[element.layer] if inside else element.number == 0)
            if not known:
                raise TransformError(f"This model has no part '{element}' that could be taken out.")


def layout(model: nn.Module, group_size: int = 256) -> Layout:
    """What can be taken out of a model. Raises TransformError for one that is pruned already, ModelError."""
    if hasattr(model, STANDING):
        raise TransformError(f"Parts of this {type(model).__name__} are cut out already. Undo that, or load the whole model.")
    found = anatomy(model)
    for name, parameter in model.named_parameters():
        if not parameter.is_meta and not bool(torch.isfinite(parameter).all()):
            raise TransformError(f"{name} holds NaN or infinity: repair the model first.")
    if any("residual" in inspect.signature(_attends(block).forward).parameters for block in found.blocks):
        raise ModelError(f"The attention of this {type(model).__name__} adds the residual itself, so it cannot be taken out.")
    heads = [found.kv_heads if _has_heads(found, block) else 0 for block in found.blocks]
    return Layout(found, group_size, heads, [-(-block.ffn_out.inputs // group_size) for block in found.blocks])


def stacked(linear: Linear) -> bool:
    """Whether a layer of query, key and value holds all queries, then all keys, then all values; else head by head."""
    return bool(_STACKED.search(linear.name))


def _attends(block: Block) -> nn.Module:
    """The module that holds query, key and value."""
    return block.module.get_submodule(block.attention_in[0].name.rpartition(".")[0].removeprefix(f"{block.name}."))


def _has_heads(parts: Anatomy, block: Block) -> bool:
    module, fused = _attends(block), block.fused
    if _FROM_OUTSIDE & inspect.signature(module.forward).parameters.keys():
        return False
    known = {id(part.module) for part in block.linears}
    others = [p for inner in module.modules() if id(inner) not in known for p in inner.parameters(recurse=False)]
    if any(p.dim() and p.shape[0] != parts.head_dim for p in others):
        return False  # a norm over all heads, or a bias for each
    if fused is None:
        return True
    if stacked(fused):
        return fused.outputs == (parts.heads + 2 * parts.kv_heads) * parts.head_dim
    return bool(_BY_HEAD.search(fused.name)) and fused.outputs == 3 * block.attention_out.inputs


def _flops(linears: Iterable[Linear]) -> int:
    return sum(2 * part.outputs * part.inputs for part in linears)
