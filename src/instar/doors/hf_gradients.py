"""Models of `transformers` whose attention has a gradient of one's choice: `instar.adapters.limits.attention` as a function.

hf_gradients.register()
model.config.attention_gradient = {"mode": "auto", "tolerance": 0.01}
model.set_attn_implementation("instar_gradient")
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from instar import extras
from instar.adapters.limits.attention import attention
from instar.errors import ModelError

NAME = "instar_gradient"


def register() -> str:
    """Make the function known to `transformers`, and return its name.

    Its settings are those of `attention` after the tensors, from `config.attention_gradient`, which is saved with the model;
    without it, mode `auto`. Raises MissingExtraError.
    """
    transformers = extras.require("transformers", "models")
    transformers.AttentionInterface.register(NAME, attend)
    transformers.AttentionMaskInterface.register(NAME, transformers.masking_utils.sdpa_mask)
    return NAME


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **given: Any,
) -> tuple[Tensor, None]:
    """As transformers calls it: query [B, H, T, K], key and value [B, Hkv, T, K] -> [B, T, H, K], and no weights.

    Raises ModelError for what has no such gradient here: padding, packed rows, windows, a cache, dropout, sinks, changed scores.
    """
    asked = {name: given[name] for name in ("softcap", "position_bias", "s_aux") if given.get(name) is not None}
    T = query.shape[2]
    if attention_mask is not None or dropout or asked or key.shape[2] != T:
        masked = attention_mask is not None
        what = "a mask (padding, packing or windows)" if masked else "dropout, a cache, sinks or changed scores"
        raise ModelError(
            f"{type(module).__name__} calls {NAME} with {what}. It takes whole rows of one length: drop attention_mask, switch "
            "dropout and the cache off (use_cache=False), or use SDPA."
        )
    causal = T > 1 and (getattr(module, "is_causal", True) if is_causal is None else is_causal)
    repeat = query.shape[1] // key.shape[1]
    key, value = (t.repeat_interleave(repeat, 1) if repeat > 1 else t for t in (key, value))
    settings = getattr(module.config, "attention_gradient", None) or {}
    y = attention(query, key, value, scale=scaling, causal=causal, **settings)
    return y.transpose(1, 2).contiguous(), None
