"""Parts cut out of the tensors of a model, so that it is smaller and faster by as much."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from instar.anatomy import Block, Linear
from instar.compression.compressor import exchange
from instar.compression.pruning import hard_attention
from instar.compression.pruning.absent import Absent, NoAttention
from instar.compression.pruning.layout import STANDING, Layout, layout, stacked
from instar.compression.pruning.removed import Removed
from instar.errors import CheckpointError, TransformError
from instar.receipt import Receipt, updating

_HEADS = ("num_heads", "n_heads", "num_attention_heads", "n_head")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads")
_WIDTHS = ("all_head_size", "split_size")


def cut(model: nn.Module, removed: Removed) -> Receipt:
    """Cut parts out of a model, in place; norms and residuals stay, and of a block of which every head is out its bias.

    A head: its rows of query, key and value, its columns of the output. A group: its rows of the FFN's input, its columns of the
    output. O(weights). Raises TransformError for parts that the model does not have or a model that is cut already, ModelError.
    """
    parts = layout(model, removed.group_size)
    parts.check(removed)
    with updating(model, method="cut", settings=removed.json(), changes=()) as update:
        cutting(model, parts, removed)
    return update.receipt


@torch.no_grad()
def cutting(model: nn.Module, parts: Layout, removed: Removed) -> None:
    """`cut`, inside an update of the caller's."""
    removed_json = removed.json()
    for layer, block in enumerate(parts.parts.blocks):
        if layer in removed.layers("ffn"):
            _drop_ffn(model, block, bias=False)
        elif groups := removed.inside("groups", layer):
            _cut_ffn(model, block, ~parts.neurons(layer, groups))
        if layer in removed.layers("attention"):
            _drop_attention(model, parts, layer, bias=False)
        elif heads := removed.inside("heads", layer):
            _cut_attention(model, parts, layer, [h for h in range(parts.parts.kv_heads) if h not in heads])
    hard = [layer for layer in removed.layers("hard") if layer not in removed.layers("attention")]
    if hard:
        hard_attention.install(model)
    for layer in hard:
        core = model.get_submodule(parts.core(layer))
        if not isinstance(core, NoAttention):
            hard_attention.choose(core, removed.top_k, removed.renormalise)
    if removed.elements:
        vars(model)[STANDING] = removed_json


def standing(model: nn.Module) -> dict[str, Any] | None:
    """What was cut out of a model, as a manifest keeps it; None where nothing was."""
    found = vars(model).get(STANDING)
    return dict(found) if isinstance(found, dict) else None


def cut_again(model: nn.Module, described: Any) -> None:
    """Cut a model, on any device, as a manifest says that it was. Raises CheckpointError."""
    try:
        removed = Removed.parse(described)
        parts = layout(model, removed.group_size)
        parts.check(removed)
        cutting(model, parts, removed)
    except TransformError as error:
        raise CheckpointError(f"The manifest's 'removed' does not fit the model: {error}") from error


def _cut_ffn(model: nn.Module, block: Block, kept: Tensor) -> None:
    if not bool(kept.any()):
        _drop_ffn(model, block, bias=True)
        return
    for part in block.ffn_in:
        _narrow(part, rows=torch.cat([kept] * (part.outputs // len(kept))))  # two times where gate and up are one layer
    _narrow(block.ffn_out, columns=kept)


def _drop_ffn(model: nn.Module, block: Block, *, bias: bool) -> None:
    new: dict[nn.Module, nn.Module] = {part.module: Absent(0) for part in block.ffn_in}
    new[block.ffn_out.module] = Absent(block.ffn_out.outputs, block.ffn_out.bias if bias else None)
    _exchange(model, new)


def _cut_attention(model: nn.Module, parts: Layout, layer: int, kept: list[int]) -> None:
    if not kept:
        _drop_attention(model, parts, layer, bias=True)
        return
    block, core = parts.parts.blocks[layer], model.get_submodule(parts.core(layer))
    anatomy = parts.parts
    shared = anatomy.heads // anatomy.kv_heads
    d = anatomy.head_dim

    def rows(each: int) -> Tensor:
        chosen = torch.zeros(anatomy.kv_heads, each, dtype=torch.bool)
        chosen[kept] = True
        return chosen.view(-1)

    if block.fused is None:
        for part in block.attention_in:
            _narrow(part, rows=rows(part.outputs // anatomy.kv_heads))
    elif stacked(block.fused):
        _narrow(block.fused, rows=torch.cat([rows(shared * d), rows(d), rows(d)]))
    else:
        _narrow(block.fused, rows=rows(3 * d))
    _narrow(block.attention_out, columns=rows(parts.width(layer)))
    for names, count in ((_HEADS, shared * len(kept)), (_KV_HEADS, len(kept)), (_WIDTHS, shared * len(kept) * d)):
        for name in names:
            if type(vars(core).get(name)) is int:
                setattr(core, name, count)


def _drop_attention(model: nn.Module, parts: Layout, layer: int, *, bias: bool) -> None:
    block, name = parts.parts.blocks[layer], parts.core(layer)
    core, out = model.get_submodule(name), block.attention_out
    kept = out.bias if bias else None
    if out.name.startswith(f"{name}."):
        _exchange(model, {core: NoAttention(out.outputs, kept, layer)})
    else:
        _exchange(model, {core: NoAttention(0, None, layer), out.module: Absent(out.outputs, kept)})


def _exchange(model: nn.Module, new: dict[nn.Module, nn.Module]) -> None:
    for old, made in new.items():
        made.train(old.training)
    exchange(model, new)


def _narrow(linear: Linear, rows: Tensor | None = None, columns: Tensor | None = None) -> None:
    """Keep only some outputs, or inputs, of a layer, whichever way it stores its weight. bool [out], [in]."""
    module, old = linear.module, linear.parameter
    weight = linear.weight
    if rows is not None:
        places = rows.nonzero().view(-1).to(weight.device)
        if linear.bias is not None:
            bias = linear.bias
            module.bias = nn.Parameter(bias.index_select(0, places), requires_grad=bias.requires_grad)
        weight = weight.index_select(0, places)
    if columns is not None:
        weight = weight.index_select(1, columns.nonzero().view(-1).to(weight.device))
    stored = (weight.T if linear.transposed else weight).contiguous()
    module.weight = nn.Parameter(stored, requires_grad=old.requires_grad)
    sizes = ("nf", "nx") if linear.transposed else ("out_features", "in_features")
    for name, size in zip(sizes, weight.shape, strict=True):
        setattr(module, name, size)
