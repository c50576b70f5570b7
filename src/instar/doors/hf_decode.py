"""`instar_decode`: an attention function of `transformers` for generation on CPUs, over caches of ragged lengths.

    hf_decode.register()
    model.set_attn_implementation("instar_decode")  # generate() now reads no padding where it decodes

One query for each sequence goes to `decode_attention`, everything else to SDPA. What a row may see is taken from the mask:
padding on the left of a batch, empty columns on the right of a `RaggedCache`, a sliding window; its plan is made once a token,
not once a layer. Values are those of SDPA but for rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from instar import extras
from instar.errors import ModelError
from instar.kernels.decode_attention import DecodePlan, attend
from instar.kernels.decode_attention_mask import plan_of_all, plan_of_mask
from instar.kernels.quantised_rows import dequantise_rows

NAME = "instar_decode"
_CHANGES = ("softcap", "s_aux", "position_bias")
"""What some models do to their scores, and SDPA does not."""


def register() -> str:
    """Make the function known to `transformers`, and return its name. Raises MissingExtraError."""
    transformers = extras.require("transformers", "models")
    transformers.AttentionInterface.register(NAME, attention)
    transformers.AttentionMaskInterface.register(NAME, transformers.masking_utils.sdpa_mask)
    return NAME


def attention(
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
    """As transformers calls it: query [B, H, T, K], key and value [B, Hkv, C, ·] -> ([B, T, H, V], None).

    SDPA serves T > 1, dropout, and masks that are no run of columns, or not the same for all heads. Raises ModelError for models
    that cap or shift their scores or have sinks.
    """
    if changed := [name for name in _CHANGES if given.get(name) is not None]:
        raise ModelError(f"{type(module).__name__} changes its scores ({', '.join(changed)}), which {NAME} does not know.")
    scales = _scales(key, value)
    if query.shape[2] == 1 and not dropout:
        plan = _plan(attention_mask, key)
        if plan is not None:
            out, _ = attend(plan, query, key, value, scale=scaling, scales=scales)
            return out.transpose(1, 2), None
    if scales is not None:
        key, value = (dequantise_rows(part, scale, query.dtype) for part, scale in zip((key, value), scales, strict=True))
    if query.shape[2] == 1 and attention_mask is not None:  # SDPA reads what no row may see: of a `RaggedCache` that is anything
        seen = (attention_mask if attention_mask.dtype == torch.bool else attention_mask > -1e4).any(1)
        unseen = ~seen[:, 0, None, : key.shape[2], None]
        key, value = key.masked_fill(unseen, 0.0), value.masked_fill(unseen, 0.0)
    sdpa = extras.require("transformers.integrations.sdpa_attention", "models").sdpa_attention_forward
    found: tuple[Tensor, None] = sdpa(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **given
    )
    return found


def _scales(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor] | None:
    """Of integers from a quantised `RaggedCache`, whose module is there if they are."""
    if key.dtype != torch.int8:
        return None
    from instar.doors.hf_ragged_cache import scales_of

    return scales_of(key, value)


def _plan(mask: Tensor | None, key: Tensor) -> DecodePlan | None:
    """The plan of one token for all layers: kept on the mask, which all of them are given. None where a mask is no run."""
    B, heads, columns = key.shape[:3]
    if mask is None:
        return plan_of_all(B, columns, heads)
    if mask.dim() != 4 or mask.shape[1:3] != (1, 1) or torch.compiler.is_compiling():
        return None
    of = (B, heads, columns, torch.get_num_threads(), None if mask.is_inference() else mask._version)
    kept = getattr(mask, "_instar_plan", None)
    # Tensors of inference mode do not count what is written into them.
    if kept is None or kept[0] != of or (mask.is_inference() and not torch.equal(mask, kept[2])):
        before = mask.clone() if mask.is_inference() else None
        kept = (of, plan_of_mask(mask[:, 0, 0, :columns].expand(B, -1), heads), before)
        mask._instar_plan = kept  # type: ignore[attr-defined]
    return kept[1]
