"""Attention of a trained model replaced by another mixer that keeps its projections, in place and with a receipt.

receipt = replace_attention(model, "gla")
receipt.undo()  # to the bit
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from instar import catalogue
from instar.anatomy.find import anatomy
from instar.anatomy.linear import Linear, is_linear
from instar.doors.swapped import SwappedAttention
from instar.errors import ModelError, UnknownNameError
from instar.interfaces import Mixer
from instar.models.decoder import Decoder
from instar.receipt import Receipt, updating

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
SHARED = (("qk_proj", "q_proj"), ("v_proj", "v_proj"), ("o_proj", "o_proj"))
"""What a mixer takes whose queries are its keys: the trained queries', as EcoFormer's authors do."""
_ROTARY = ("LlamaAttention", "MistralAttention", "Qwen2Attention")
_KNOWN = (*_ROTARY, "GPT2Attention")
_WIDE = {"expand_k": 1.0, "expand_v": 1.0}
"""Knobs that say how wide all heads' keys and values are; those of a trained attention are as wide as the model."""


@dataclass(frozen=True)
class Trained:
    """What a mixer takes over from a trained attention layer."""

    path: str
    """Where the layer stands in the model."""
    module: nn.Module
    heads: int
    kv_heads: int
    rope_base: float | None
    """None where the layer itself does not rotate."""
    longest: int | None
    """Tokens that the model was trained to read, None where nothing says it."""
    projections: Mapping[str, tuple[Tensor, Tensor | None]]
    """Name -> weight [out, in] and bias."""


def replace_attention(model: nn.Module, name: str, *, layers: Sequence[int] | None = None, **knobs: Any) -> Receipt:
    """Put a mixer in the place of attention, in chosen layers, with the trained W_q, W_k, W_v and W_o.

    What the mixer has beyond them (gates, sinks, norms) starts as the mixer says. Keys and values that query heads share stay
    shared where the mixer knows `kv_heads`, and are repeated otherwise; rotary positions stay where the mixer rotates too, and
    are lost otherwise; a mixer that squeezes them does so beyond the longest input that the model's configuration names, unless
    `trained` says another. A mixer whose queries are its keys takes W_q and no W_k; what it fits to its inputs (hash functions)
    waits for `instar.models.refitting`. Dropout of the attention is lost. Softmax for softmax changes nothing but rounding.

    Args:
        model: a causal language model of `transformers` with the attention of Llama (SmolLM2), Mistral, Qwen2 or GPT-2, or a
            `Decoder`.
        name: an address of the catalogue, "gla" or "gla:no_gate". layers: their numbers; None for all. knobs: of the mixer.

    The mixer holds copies: the trained layers stay as they are for the receipt, which undoes to the bit. O(bytes of the model),
    twice. `save_pretrained` of a swapped model of `transformers` writes a folder that its own class cannot read: keep
    `state_dict()`, and make the same swap before loading it.
    Raises ModelError for attention that a mixer cannot stand in for, and for a mixer without such projections; UnknownNameError.
    """
    chosen = trained(model, layers)
    mixers = {one.path: mixer_for(one, name, knobs) for one in chosen}
    return place(model, mixers, name=name, knobs=knobs)


def place(model: nn.Module, mixers: Mapping[str, Mixer], *, name: str, knobs: Mapping[str, Any]) -> Receipt:
    """Put mixers where they belong: path of the replaced layer -> mixer."""
    settings = {"mixer": name, "layers": list(mixers), "knobs": dict(knobs)}
    with updating(model, method="replace_attention", settings=settings, changes=()) as update:
        for path, mixer in mixers.items():
            parent, _, key = path.rpartition(".")
            old = model.get_submodule(path)
            index = getattr(old, "layer_idx", None)
            setattr(model.get_submodule(parent), key, mixer if index is None else SwappedAttention(mixer, index))
        if isinstance(model, Decoder):
            model.config = None  # no address says what it is now
        else:
            model._is_stateful = True  # type: ignore[assignment]  # `generate` must not take tokens back
    return update.receipt


def trained(model: nn.Module, layers: Sequence[int] | None = None) -> list[Trained]:
    """The attention of chosen layers. Raises ModelError, UnknownNameError."""
    found = _of_decoder(model) if isinstance(model, Decoder) else _of_transformers(model)
    if layers is None:
        return found
    for number in layers:
        if number not in range(len(found)):
            raise UnknownNameError.among("layer", str(number), map(str, range(len(found))))
    return [found[number] for number in sorted(set(layers))]


def mixer_for(one: Trained, name: str, knobs: Mapping[str, Any]) -> Mixer:
    """A mixer with the projections of a trained layer. Raises ModelError, UnknownNameError."""
    address = catalogue.parse(name)
    cls = catalogue.load(address.card)
    known = inspect.signature(cls).parameters
    if not issubclass(cls, Mixer) or not address.card.capability("causal") or address.card.capability("lookahead"):
        raise ModelError(f"'{name}' is no causal mixer; `instar list --family mixers` names them.")
    if unknown := [knob for knob in knobs if knob not in known]:
        raise UnknownNameError.among(f"knob of {address.slug}", unknown[0], known)
    width = one.projections["q_proj"][0].shape[1]
    taken = {"heads": one.heads, "kv_heads": one.kv_heads, "rope": one.rope_base is not None, **_WIDE}
    if one.rope_base is not None:
        taken["rope_base"] = one.rope_base
    elif "rope_base" in known and "rope" not in known:
        raise ModelError(f"{one.path} does not rotate queries and keys, and '{name}' always does: they were not trained for it.")
    if one.longest is not None:
        taken["trained"] = one.longest
    arguments = {key: value for key, value in taken.items() if key in known}
    mixer = cls(width, **{**arguments, **address.arguments, **knobs})
    weight = one.projections["q_proj"][0]
    mixer = mixer.to(weight.device, weight.dtype).train(one.module.training)
    for place, key in SHARED if hasattr(mixer, "qk_proj") else zip(PROJECTIONS, PROJECTIONS, strict=True):
        _give(mixer, place, key, one, name)
    return mixer


def _give(mixer: Mixer, place: str, key: str, one: Trained, name: str) -> None:
    """Put a copy of a trained projection into a place of a mixer."""
    own = getattr(mixer, place, None)
    if not isinstance(own, nn.Linear):
        raise ModelError(
            f"'{name}' has no linear layer {place}: replacing attention keeps the trained W_q, W_k, W_v and W_o, which needs a "
            f"mixer with linear layers {', '.join(PROJECTIONS)}."
        )
    weight, bias = (None if part is None else part.detach() for part in one.projections[key])
    assert weight is not None
    if key in ("k_proj", "v_proj") and own.out_features != weight.shape[0]:
        weight, bias = (None if part is None else _repeated(part, one) for part in (weight, bias))
    assert weight is not None
    if own.weight.shape != weight.shape:
        raise ModelError(
            f"{key} of '{name}' is {list(own.weight.shape)} and that of {one.path} is {list(weight.shape)}: choose knobs for "
            "which they agree, or a mixer with keys and values as wide as the model."
        )
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        linear.weight.copy_(weight)
        if bias is not None:
            linear.bias.copy_(bias)
    setattr(mixer, place, linear.train(mixer.training))


def _repeated(part: Tensor, one: Trained) -> Tensor:
    """Rows of shared heads, once for each query head: [Hkv·K, …] -> [H·K, …]."""
    heads = part.unflatten(0, (one.kv_heads, -1)).repeat_interleave(one.heads // one.kv_heads, 0)
    return heads.flatten(0, 1)


def _of_decoder(model: Decoder) -> list[Trained]:
    found = []
    for i, block in enumerate(model.blocks):
        mixer: Any = block.mixer
        projections: dict[str, Any] = {key: getattr(mixer, key, None) for key in PROJECTIONS}
        if missing := [key for key, one in projections.items() if not isinstance(one, nn.Linear)]:
            raise ModelError(f"The mixer of block {i}, {type(mixer).__name__}, has no {', '.join(missing)} to keep.")
        rotates = getattr(mixer, "rope", hasattr(mixer, "rope_base"))  # some always do
        base = float(mixer.rope_base) if rotates else None
        taken = {key: (one.weight, one.bias) for key, one in projections.items()}
        kv_heads, longest = getattr(mixer, "kv_heads", mixer.heads), getattr(mixer, "trained", None)
        found.append(Trained(f"blocks.{i}.mixer", mixer, mixer.heads, kv_heads, base, longest, taken))
    return found


def _of_transformers(model: nn.Module) -> list[Trained]:
    if standing := [path for path, module in model.named_modules() if isinstance(module, SwappedAttention)]:
        raise ModelError(f"{standing[0]} was replaced already: undo that swap first, and name all layers in one.")
    parts = anatomy(model)
    found = []
    for block in parts.blocks:
        path = block.attention_out.name.rpartition(".")[0]
        module: Any = model.get_submodule(path)
        _require_known(path, module, parts.heads * parts.head_dim, parts.width)
        if block.fused is not None:  # GPT-2: query, key and value below each other
            weights = block.fused.weight.chunk(3)
            biases = [None] * 3 if block.fused.bias is None else block.fused.bias.chunk(3)
            taken = dict(zip(PROJECTIONS, zip(weights, biases, strict=True), strict=False))
        else:
            linears = zip(PROJECTIONS, (block.query, block.key, block.value), strict=False)
            taken = {key: _pair(one) for key, one in linears if one is not None}
        taken["o_proj"] = _pair(block.attention_out)
        base = _rope_base(path, module) if type(module).__name__ in _ROTARY else None
        longest = getattr(module.config, "max_position_embeddings", None)
        found.append(Trained(path, module, parts.heads, parts.kv_heads, base, longest, taken))
    return found


def _pair(linear: Linear) -> tuple[Tensor, Tensor | None]:
    return linear.weight, linear.bias


def _require_known(path: str, module: Any, inner: int, width: int) -> None:
    """Raise ModelError for attention that does more than W_o softmax(q k / √K) v, or does it otherwise."""
    kind = type(module).__name__
    if kind not in _KNOWN:
        raise ModelError(f"{path} is a {kind}; those that a mixer can stand in for are {', '.join(_KNOWN)}.")
    odd = [name for name, part in module.named_children() if not is_linear(part) and not isinstance(part, nn.Dropout)]
    if odd:
        raise ModelError(f"{path} holds {', '.join(odd)} beside its projections (adapters?): merge or detach them first.")
    if inner != width:
        raise ModelError(f"The heads of {path} are {inner} wide together and the model {width}; mixers have them equally wide.")
    if window := getattr(module, "sliding_window", None) or _window(module):
        raise ModelError(f"{path} reads the last {window} tokens alone; mixers stand in for attention to all that came before.")
    if abs(module.scaling * module.head_dim**0.5 - 1) > 1e-6:
        raise ModelError(f"{path} multiplies its scores by {module.scaling:g}, mixers by 1 / √{module.head_dim}.")


def _window(module: Any) -> int | None:
    """That of Mistral, whose layers look it up."""
    return getattr(module.config, "sliding_window", None) if type(module).__name__ == "MistralAttention" else None


def _rope_base(path: str, module: Any) -> float:
    """θ of plain rotary positions over whole heads. Raises ModelError for others."""
    said = getattr(module.config, "rope_parameters", None) or {}
    kind, part = said.get("rope_type", "default"), said.get("partial_rotary_factor", 1.0)
    if kind != "default" or part not in (None, 1, 1.0):
        raise ModelError(f"{path} has rotary positions of type '{kind}' over {part} of a head; mixers know the default over all.")
    return float(said.get("rope_theta", 10000.0))
