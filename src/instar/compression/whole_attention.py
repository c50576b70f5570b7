"""Attention in block integers for models of `transformers`, through its register of attention functions."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from instar import extras
from instar.compression import whole
from instar.compression.arithmetic import Backend
from instar.compression.pruning import hard_attention
from instar.errors import TransformError

PREFIX = "instar_blockwise_"


def install(model: nn.Module, backend: Backend) -> bool:
    """Let a model of transformers attend by `whole.attention`; False where it is none, or cannot change its attention.

    Raises TransformError for a model that attends hard, which would be lost.
    """
    if not hasattr(model, "set_attn_implementation") or not getattr(model, "_supports_attention_backend", False):
        return False
    if model.config._attn_implementation == hard_attention.NAME:  # type: ignore[union-attr]
        raise TransformError("This model attends hard, which it cannot do in block integers: prune it with top_k=0 before.")
    transformers = extras.require("transformers", "models")
    name = PREFIX + backend
    transformers.AttentionInterface.register(name, partial(forward, backend))
    transformers.AttentionMaskInterface.register(name, transformers.masking_utils.eager_mask)
    model.set_attn_implementation(name)  # type: ignore[operator]
    return True


def installed(model: nn.Module) -> str | None:
    """The back-end of a model's attention, where `install` put one."""
    name = str(getattr(getattr(model, "config", None), "_attn_implementation", ""))
    return name.removeprefix(PREFIX) if name.startswith(PREFIX) else None


def forward(
    backend: Backend,
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """As transformers calls it; keys that several heads share are repeated. No gradients.

    Raises TransformError for scores that are changed before the softmax (a soft cap, sinks, position biases).
    """
    if any(others.get(name) is not None for name in ("softcap", "s_aux", "position_bias")):
        raise TransformError(
            f"{type(module).__name__} changes its scores before the softmax, which attention in block integers does not do: "
            'compress with activations="inputs".'
        )
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (part.repeat_interleave(groups, 1) for part in (key, value))
    allowed = None
    if attention_mask is not None:
        allowed = attention_mask if attention_mask.dtype == torch.bool else attention_mask > -1e4
        allowed = torch.broadcast_to(allowed[..., : key.shape[-2]], (*query.shape[:-1], key.shape[-2]))
    found = whole.attention(query, key, value, allowed, scaling or query.shape[-1] ** -0.5, backend)
    return found.to(query.dtype), None
