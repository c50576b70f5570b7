"""Attention layers of `transformers` models in which a mixer of ours stands: masks and caches translated, nothing else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from instar.errors import ModelError
from instar.interfaces import Mixer


class SwappedAttention(nn.Module):
    """A mixer where a model of `transformers` calls its attention: hidden_states [B, T, D] -> ([B, T, D], None).

    The padding is read from the model's own mask; the state lives in the model's cache, in the place of this layer. Positions
    of a mixer that knows rotary ones count real tokens, which is what `generate` gives to the other layers.

    Args:
        mixer: what mixes. layer_idx: the number of the layer.

    Raises ModelError for masks that are not causal with padding (packed rows, windows), and for caches of fixed size.
    """

    def __init__(self, mixer: Mixer, layer_idx: int) -> None:
        super().__init__()
        self.mixer, self.layer_idx = mixer, layer_idx
        self.is_causal = True

    def forward(
        self,
        hidden_states: Tensor,
        *,
        attention_mask: Any = None,
        cache: Any = None,
        past_key_values: Any = None,
        position_ids: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """As the layer that it replaces is called. No attention weights: most mixers have none."""
        if encoder_hidden_states is not None:
            raise ModelError("A replaced attention reads its own sequence; this model gives it another one as well.")
        cache = past_key_values if cache is None else cache
        layer = None if cache is None else state_layer(cache, self.layer_idx)
        mask = real_tokens(attention_mask, hidden_states.shape[1])
        if position_ids is not None:
            require_consecutive(position_ids, mask)
        y, state = self.mixer(hidden_states, None if layer is None else layer.state, mask=mask)
        if layer is not None:
            layer.advance(state, hidden_states.shape[0], hidden_states.shape[1], mask, hidden_states.device)
        return y, None


def real_tokens(attention_mask: Any, T: int) -> Tensor | None:
    """bool [B, T], which of the last T columns of a model's mask [B, 1, T, C] are real tokens; None for all.

    Raises ModelError unless every real query sees exactly the real columns up to its own.
    """
    if attention_mask is None or T == 0:
        return None
    if not isinstance(attention_mask, Tensor) or attention_mask.dim() != 4:
        raise ModelError(
            "A replaced attention reads masks [B, 1, T, C], as of attn_implementation='sdpa' or 'eager'; received "
            f"{tuple(attention_mask.shape) if isinstance(attention_mask, Tensor) else type(attention_mask).__name__}."
        )
    allowed = attention_mask[:, 0] if attention_mask.dtype == torch.bool else attention_mask[:, 0] == 0
    columns = allowed.shape[-1]
    if columns < T:
        raise ModelError(f"A mask of {columns} columns for {T} tokens.")
    past = columns - T
    new = allowed.diagonal(past, 1, 2).clone()  # padding does not see itself …
    new[:, :-1] &= ~allowed.diagonal(past + 1, 1, 2)[:, : T - 1]  # … or is let see everything, so that no row is empty
    real = torch.cat([allowed[:, -1, :past], new], 1)
    wanted = torch.ones(T, columns, dtype=torch.bool, device=allowed.device).tril(past) & real.unsqueeze(1)
    if not bool(((allowed == wanted).all(-1) | ~new).all()):
        raise ModelError(
            "A replaced attention knows causal masks with padding; this one hides other columns: packed rows, a window, a cache "
            "of fixed size, or a custom mask."
        )
    return None if bool(new.all()) else new


def require_consecutive(position_ids: Tensor, mask: Tensor | None) -> None:
    """Raise ModelError unless the positions [B, T] of real tokens grow by one, as a mixer counts them."""
    steady = position_ids.diff(dim=-1) == 1
    if mask is not None:
        steady = steady | ~(mask[:, 1:] & mask[:, :-1])
    if not bool(steady.all()):
        raise ModelError("A replaced attention counts positions itself, one by one; these position_ids skip or start again.")


def state_layer(cache: Any, index: int) -> Any:
    """The layer of a cache that holds this mixer's state; an empty one of keys and values is exchanged for it."""
    from instar.doors.hf_state_cache import ColumnLayer, cache_utils

    layers = getattr(cache, "layers", None)
    if layers is None:
        raise ModelError(f"A replaced attention keeps its state in a DynamicCache; received {type(cache).__name__}.")
    while len(layers) <= index:
        layers.append(cache_utils.DynamicLayer())
    found = layers[index]
    if not isinstance(found, ColumnLayer):
        if type(found) is not cache_utils.DynamicLayer or found.is_initialized:
            raise ModelError(
                f"Layer {index} of the cache is a {type(found).__name__}"
                f"{' that holds keys and values' if found.is_initialized else ''}; a replaced attention keeps its state in the "
                "place of an empty DynamicLayer. Use cache_implementation='dynamic', and a new cache after a swap."
            )
        layers[index] = found = ColumnLayer()
    return found
