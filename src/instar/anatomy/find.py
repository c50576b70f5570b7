"""Finding the parts of a transformer by how its layers are nested, named and shaped."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import nn

from instar.anatomy.linear import Linear, is_linear
from instar.anatomy.parts import Anatomy, Block
from instar.errors import ModelError

_ATTENTION = re.compile(r"(^|[._])(self_?)?att(n|ention)", re.IGNORECASE)
_CROSS = re.compile(r"cross_?att|encoder_att", re.IGNORECASE)
_FUSED = re.compile(r"^(c_attn|query_key_value|w?qkv(_proj)?|in_proj)$", re.IGNORECASE)
_ROLES = {
    "query": re.compile(r"^(w?q|query|q_(proj|lin)|wq)$", re.IGNORECASE),
    "key": re.compile(r"^(w?k|key|k_(proj|lin)|wk)$", re.IGNORECASE),
    "value": re.compile(r"^(w?v|value|v_(proj|lin)|wv)$", re.IGNORECASE),
}


def role(path: str) -> str | None:
    """What a linear layer of attention is by its name: query, key, value, fused (the three in one), or None."""
    last = path.rsplit(".", 1)[-1]
    return next((name for name, pattern in ({**_ROLES, "fused": _FUSED}).items() if pattern.match(last)), None)


def anatomy(model: nn.Module) -> Anatomy:
    """The parts of a model; nothing is run or changed.

    Blocks are the longest list of modules that all hold attention and an FFN. In attention, layers are known by their names
    (query, key, value, or the three in one) and what is left is the output; of the FFN the last layer that is as wide as the
    model is the output, the others are its input. Known to fit GPT-2, GPT-J, GPT-Neo, NeoX, OPT, BLOOM, Falcon, Phi, Llama,
    Mistral, Qwen, Gemma, OLMo, BERT, RoBERTa, DistilBERT, MPNet and ModernBERT.

    Raises ModelError that says what was not found: encoder–decoders, mixtures of experts, and weights that are packed or
    quantised are refused.
    """
    _refuse(model)
    path, entries = _blocks(model)
    config = getattr(model, "config", None)
    blocks = [_block(i, f"{path}.{i}", module) for i, module in enumerate(entries)]
    width = blocks[0].ffn_out.outputs
    heads = _number(config, "num_attention_heads", "n_head", "num_heads", "n_heads")
    if heads is None:
        raise ModelError(f"{type(model).__name__} does not say in its config how many attention heads it has.")
    kv_heads = _number(config, "num_key_value_heads", "num_kv_heads") or heads
    if (
        blocks[0].fused is not None
        and getattr(config, "multi_query", False)
        and not getattr(config, "new_decoder_architecture", False)
    ):
        kv_heads = 1
    head_dim = blocks[0].attention_out.inputs // heads
    if blocks[0].key is not None:
        kv_heads = blocks[0].key.outputs // head_dim
    embedding = _embedding(model)
    head = _head(model)
    tied = embedding is not None and head is not None and head.parameter is embedding.weight
    return Anatomy(blocks, width, heads, kv_heads, head_dim, embedding, _final_norm(model, path, width), head, tied)


def _refuse(model: nn.Module) -> None:
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{type(model).__name__} has an encoder and a decoder; models of one stack of blocks can be taken apart."
        )
    if getattr(config, "quantization_config", None) is not None or getattr(model, "is_quantized", False):
        raise ModelError(f"The weights of this {type(model).__name__} are quantised. Load a copy in float32 or bfloat16.")


def _blocks(model: nn.Module) -> tuple[str, list[nn.Module]]:
    found: tuple[str, list[nn.Module]] = ("", [])
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) > len(found[1]) and all(map(_is_block, module)):
            found = (name, list(module))
    if not found[1]:
        raise ModelError(
            f"{type(model).__name__} has no list of blocks that each hold attention and an FFN, so its parts are not known. Give "
            "the layers yourself where the method takes them, or add the architecture's names to instar.anatomy."
        )
    return found


def _is_block(module: nn.Module) -> bool:
    attention, ffn = _split("", module)
    return len(attention) >= 2 and len(ffn) >= 2


def _split(name: str, block: nn.Module) -> tuple[list[Linear], list[Linear]]:
    """The linear layers of a block: those in attention, and the others."""
    attention: list[Linear] = []
    ffn: list[Linear] = []
    for inner, module in block.named_modules():
        if is_linear(module):
            (attention if _ATTENTION.search(inner) else ffn).append(Linear(f"{name}.{inner}" if name else inner, module))
    return attention, ffn


def _block(index: int, name: str, module: nn.Module) -> Block:
    attention, ffn = _split(name, module)
    if any(_CROSS.search(part.name) for part in attention):
        raise ModelError(f"{name} attends to another sequence as well; models of one stack of blocks can be taken apart.")
    last = {part.name: part.name.rsplit(".", 1)[-1] for part in attention}
    fused = _one([p for p in attention if _FUSED.match(last[p.name])], name, "layer of query, key and value", optional=True)
    roles = {
        role: _one([p for p in attention if pattern.match(last[p.name])], name, role, optional=fused is not None)
        for role, pattern in _ROLES.items()
    }
    known = {id(part) for part in (fused, *roles.values())}
    out = _one([p for p in attention if id(p) not in known], name, "output of attention")
    assert out is not None
    width = out.outputs
    ends = [part for part in ffn if part.outputs == width]
    if not ends or not 2 <= len(ffn) <= 3:
        held = ", ".join(f"{p.name} [{p.outputs}, {p.inputs}]" for p in ffn)
        raise ModelError(
            f"The FFN of {name} is expected to be one or two layers up and one of width {width} down; it holds {held}. "
            "Mixtures of experts are not taken apart."
        )
    down = ends[-1]
    return Block(
        index, name, module, roles["query"], roles["key"], roles["value"], fused, out, [p for p in ffn if p is not down], down
    )


def _one(found: Sequence[Linear], name: str, what: str, *, optional: bool = False) -> Linear | None:
    if len(found) == 1:
        return found[0]
    if not found and optional:
        return None
    held = ", ".join(part.name for part in found) or "none"
    raise ModelError(f"{name} is expected to hold one {what}; found {held}. Add the architecture's names to instar.anatomy.")


def _number(config: Any, *names: str) -> int | None:
    return next((value for name in names if isinstance(value := getattr(config, name, None), int)), None)


def _embedding(model: nn.Module) -> nn.Embedding | None:
    try:
        found = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        found = next((m for m in model.modules() if isinstance(m, nn.Embedding)), None)
    return found if isinstance(found, nn.Embedding) else None


def _head(model: nn.Module) -> Linear | None:
    try:
        found = model.get_output_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return None
    return next((Linear(name, module) for name, module in model.named_modules() if module is found and is_linear(module)), None)


def _final_norm(model: nn.Module, path: str, width: int) -> nn.Module | None:
    """The norm that stands beside the list of blocks, not at the embedding."""
    parent = model.get_submodule(path.rpartition(".")[0])
    for name, module in reversed(list(parent.named_children())):
        weight = getattr(module, "weight", None)
        if "norm" in type(module).__name__.lower() and weight is not None and weight.shape == (width,) and "emb" not in name:
            return module
    return None
