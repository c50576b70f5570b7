"""Attention functions for models of `transformers`: clipped softmax, softmax-plus-one, and sinks that run on SDPA.

    hf_attention.register()
    model.set_attn_implementation("instar_softmax1")  # or attn_implementation=… where a model is loaded

Changing the function of a trained model changes what it says: these are for training, and for models that were trained so.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from instar import extras
from instar.errors import ModelError
from instar.kernels.eager_attention import Weigh, eager_attention
from instar.kernels.normalisers import clipped_softmax, sink_softmax
from instar.kernels.sink_attention import sink_attention

PREFIX = "instar_"
Name = Literal["clipped_softmax", "softmax1", "sinks"]
NAMES: tuple[Name, ...] = ("clipped_softmax", "softmax1", "sinks")


def register() -> tuple[str, ...]:
    """Make the functions known to `transformers`, and return their names.

    instar_clipped_softmax: settings from `config.clipped_softmax = {"alpha": …, "length": …, "zeta": …}`, which is saved with the
        model; where it says nothing, α = 4, ζ = 1 and the configuration's longest input (`max_position_embeddings`).
    instar_softmax1: a sink of 0 for every head.
    instar_sinks: for attention layers with a parameter `sinks` [H], as those of gpt-oss.

    Raises MissingExtraError.
    """
    transformers = extras.require("transformers", "models")
    for name in NAMES:
        transformers.AttentionInterface.register(PREFIX + name, partial(attend, name))
        transformers.AttentionMaskInterface.register(PREFIX + name, transformers.masking_utils.sdpa_mask)
    return tuple(PREFIX + name for name in NAMES)


def attend(
    name: Name,
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **given: Any,
) -> tuple[Tensor, Tensor | None]:
    """As transformers calls it: query [B, H, T, K], key and value [B, Hkv, C, K] -> ([B, T, H, K], weights [B, H, T, C] or None).

    Weights are returned where they are written out: clipped softmax, dropout, or `output_attentions`. Raises ModelError for
    scores that are changed before the softmax (a soft cap, position biases), and for sinks of a layer that has none.
    """
    if given.get("softcap") is not None or given.get("position_bias") is not None:
        raise ModelError(f"{type(module).__name__} caps or shifts its scores, which {PREFIX}{name} does not know.")
    T = query.shape[2]
    causal = T > 1 and attention_mask is None and (getattr(module, "is_causal", True) if is_causal is None else is_causal)
    if causal and key.shape[2] > T:  # the first call with a cache of fixed size, whose rest is empty
        key, value = key[:, :, :T], value[:, :, :T]
    allowed = None if attention_mask is None else _allowed(attention_mask, key.shape[2], name)
    weigh, sink = _weights(name, module, given)
    if name != "clipped_softmax" and T > 1 and not dropout and not given.get("output_attentions"):
        level = None if sink is None else sink.to(query.dtype)
        y = sink_attention(query, key, value, level, attend=allowed, causal=causal, scale=scaling)
        return y.transpose(1, 2).contiguous(), None
    if causal:
        allowed = torch.ones(T, T, dtype=torch.bool, device=query.device).tril()
    kept: list[Tensor] = []

    def dropped(x: Tensor) -> Tensor:
        kept.append(F.dropout(weigh(x), dropout) if dropout else weigh(x))
        return kept[0]

    y = eager_attention(query, key, value, dropped, attend=allowed, scale=scaling)
    return y.transpose(1, 2).contiguous(), kept[0].to(query.dtype)


def _weights(name: Name, module: Any, given: dict[str, Any]) -> tuple[Weigh, Tensor | None]:
    """How scores become weights, and the sinks [H], if they are not all 0."""
    if name == "clipped_softmax":
        config = module.config
        settings: dict[str, Any] = {"alpha": 4.0, "zeta": 1.0, "length": getattr(config, "max_position_embeddings", None)}
        settings |= getattr(config, "clipped_softmax", None) or {}
        alpha, zeta, length = (settings[key] for key in ("alpha", "zeta", "length"))
        if not length or alpha < 0 or zeta < 1:
            raise ModelError(
                "config.clipped_softmax expects alpha ≥ 0, zeta ≥ 1 and length, the tokens of a training sequence; received "
                f"{alpha}, {zeta} and {length}."
            )
        return lambda x: clipped_softmax(x, -alpha / length, zeta), None
    sink = None
    if name == "sinks":
        sink = given.get("s_aux") if given.get("s_aux") is not None else getattr(module, "sinks", None)
        if sink is None:
            raise ModelError(f"{type(module).__name__} has no parameter `sinks`; {PREFIX}softmax1 has a sink of 0 for all heads.")
    level = torch.zeros(()) if sink is None else sink.view(-1, 1, 1)
    return lambda x: sink_softmax(x, level.to(x)), sink


def _allowed(mask: Tensor, columns: int, name: str) -> Tensor:
    """bool [B, 1, T, C]; queries that may see nothing (padding) see all, since their outputs mean nothing and must be finite."""
    if mask.dtype != torch.bool:
        if not bool(((mask == 0) | (mask < -1e4)).all()):
            raise ModelError(f"This model adds biases to its scores, which {PREFIX}{name} does not know.")
        mask = mask == 0
    mask = mask[..., :columns]
    return mask | ~mask.any(-1, keepdim=True)
