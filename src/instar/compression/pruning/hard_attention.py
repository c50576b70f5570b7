"""Hard attention for models of `transformers`: of each row of probabilities the K largest are kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from instar import extras
from instar.errors import TransformError

NAME = "instar_hard"
TOP_K, RENORMALISE = "instar_top_k", "instar_renormalise"
"""Attributes of a module that attends hard."""


def install(model: nn.Module) -> None:
    """Let the layers of a model that are told to (`choose`) attend hard; the others attend as before, by torch's SDPA.

    Raises TransformError where the model cannot change its attention.
    """
    known = getattr(model, "_supports_attention_backend", False) and getattr(model, "_supports_sdpa", False)
    if not known or not hasattr(model, "set_attn_implementation"):
        raise TransformError(
            f"{type(model).__name__} cannot change its attention, so that none of its layers can attend hard: give top_k=0."
        )
    if str(model.config._attn_implementation).startswith("instar_blockwise"):  # type: ignore[union-attr]
        raise TransformError("This model attends in block integers, which cannot attend hard as well: give top_k=0.")
    transformers = extras.require("transformers", "models")
    transformers.AttentionInterface.register(NAME, forward)
    transformers.AttentionMaskInterface.register(NAME, transformers.masking_utils.sdpa_mask)
    model.set_attn_implementation(NAME)  # type: ignore[operator]


def choose(core: nn.Module, top_k: int | None, renormalise: bool = False) -> None:
    """Let a module that attends keep `top_k` probabilities a row; None lets it keep all."""
    if top_k is None:
        vars(core).pop(TOP_K, None)
        vars(core).pop(RENORMALISE, None)
    else:
        vars(core)[TOP_K], vars(core)[RENORMALISE] = top_k, renormalise


def forward(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, Tensor | None]:
    """As transformers calls it: query [B, H, T, d], key and value [B, H', S, d] -> [B, T, H, d]. Dense where K ≥ S.

    Raises TransformError for scores that are changed before the softmax (a soft cap, position biases).
    """
    if any(others.get(name) is not None for name in ("softcap", "s_aux", "position_bias")):
        raise TransformError(
            f"{type(module).__name__} caps or shifts its scores, which hard attention does not do: give top_k=0."
        )
    top_k = getattr(module, TOP_K, None)
    if top_k is None or top_k >= key.shape[2]:
        sdpa = extras.require("transformers", "models").modeling_utils.ALL_ATTENTION_FUNCTIONS["sdpa"]
        found: tuple[Tensor, Tensor | None] = sdpa(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **others
        )
        return found
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    allowed = attention_mask
    T, S = query.shape[2], key.shape[2]
    if allowed is None and causal and T > 1:
        allowed = torch.ones(T, S, dtype=torch.bool, device=query.device).tril(S - T)
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (part.repeat_interleave(groups, 1) for part in (key, value))
    p = probabilities(query, key, allowed, query.shape[-1] ** -0.5 if scaling is None else scaling)
    p = nn.functional.dropout(p, dropout, module.training)
    p = hard(p, top_k, renormalise=getattr(module, RENORMALISE, False))
    return (p @ value).transpose(1, 2).contiguous(), p


def probabilities(query: Tensor, key: Tensor, allowed: Tensor | None, scaling: float) -> Tensor:
    """softmax(q kᵀ · scaling) [B, H, T, S]; allowed: bool, or what is added to the scores."""
    scores = query @ key.transpose(-1, -2) * scaling
    if allowed is not None:
        least = torch.finfo(scores.dtype).min
        scores = scores.masked_fill(~allowed, least) if allowed.dtype == torch.bool else scores + allowed
    return scores.softmax(-1, dtype=torch.float32).to(query.dtype)


def hard(p: Tensor, top_k: int, *, renormalise: bool = False) -> Tensor:
    """p with all but the `top_k` largest of each row at 0; the row sums to less than 1, unless it is renormalised.

    Dense in, dense out: O(S) more work a row than soft attention, no less.
    """
    if top_k >= p.shape[-1]:
        return p
    values, places = p.topk(top_k, -1)
    if renormalise:
        values = values / values.sum(-1, keepdim=True).clamp(min=torch.finfo(p.dtype).tiny)
    return torch.zeros_like(p).scatter(-1, places, values)
