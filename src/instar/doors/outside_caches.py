"""Recurrent layers of `transformers` and `fla`, which keep their states in caches: here the tensors of one layer, as a value."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from instar.doors.outside import NotOfferedError, StatefulLayer
from instar.errors import ModelError
from instar.state import State, clone, leaves


class TransformersLayer(StatefulLayer):
    """A recurrent layer of `transformers` that takes `cache=` and `attention_mask=`: state spaces, delta rules, convolutions.

    In place of its `Cache` the layer is given one whose tensors are a value: {"conv 0": [B, channels, kernel], "recurrent 0": …}.
    Attention layers are no such layers: masks and positions are made for them by their models.
    """

    def __init__(self, width: int, *, heads: int = 4) -> None:
        super().__init__(width, heads=heads)
        taken = inspect.signature(self.layer.forward).parameters
        found = [name for name in ("cache", "cache_params", "past_key_values") if name in taken]  # its name changed
        if not found:
            raise ModelError(f"{type(self.layer).__name__} takes no cache; it takes {', '.join(taken)}. Use StatefulLayer.")
        self._cache = found[0]

    def run(self, x: Tensor, state: State, mask: Tensor | None = None) -> tuple[Tensor, State]:
        cache = ValueCache({} if state is None else state)
        y = self.layer(x, **{self._cache: cache, "attention_mask": mask})
        return (y[0] if isinstance(y, tuple) else y), cache.state


class ValueCache:
    """What a recurrent layer of `transformers` asks of a cache, over the tensors of one layer, none of which is changed."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = dict(state)

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        return self._own(f"conv {state_idx}")

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        return self._own(f"recurrent {state_idx}")

    def _own(self, name: str) -> Tensor | None:
        """A copy that takes the place of what was given: the forms for a single token write into it."""
        if name in self.state:
            self.state[name] = self.state[name].clone()
        return self.state.get(name)

    def update_conv_state(
        self, conv_states: Tensor, layer_idx: int, state_idx: int = 0, conv_kernel_size: int | None = None, **_: Any
    ) -> Tensor:
        before = self.state.get(f"conv {state_idx}")
        keep = conv_states.shape[-1] if conv_kernel_size is None else conv_kernel_size
        if before is None:
            joined = nn.functional.pad(conv_states, (max(0, keep - conv_states.shape[-1]), 0))
        else:
            keep = before.shape[-1]
            joined = torch.cat([before, conv_states], -1)
        self.state[f"conv {state_idx}"] = joined[..., -keep:]
        return joined

    def update_recurrent_state(self, recurrent_states: Tensor, layer_idx: int, state_idx: int = 0, **_: Any) -> Tensor:
        self.state[f"recurrent {state_idx}"] = recurrent_states
        return recurrent_states

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:
        return bool(self.state)

    def is_recording_past(self, layer_idx: int) -> bool:
        return False


class FlaLayer(StatefulLayer):
    """A recurrent layer of `flash-linear-attention`, with layer_idx=0. Its kernels need a GPU.

    State: what the layer stores, such as {"recurrent_state": [B, H, …], "conv_state": (…)}, and "seen" [B], tokens read. Layers
    that count rotary positions by the cache (retention) take rows together only where these are equal; NotOfferedError else.
    """

    def run(self, x: Tensor, state: State, mask: Tensor | None = None) -> tuple[Tensor, State]:
        cache = FlaCache(state)
        y = self.layer(x, attention_mask=mask, past_key_values=cache, use_cache=True)[0]
        return y, cache.state


class FlaCache:
    """What a layer of `fla` asks of a cache, over the state of one layer, which is left as it is."""

    def __init__(self, state: State) -> None:
        self.state = state

    def __len__(self) -> int:
        return int(self.state is not None)

    def __getitem__(self, layer_idx: int) -> dict[str, Any]:
        return {"conv_state": None, "recurrent_state": None, **clone(self.state)}  # convolutions write into theirs

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens that have been read: where rotary positions go on."""
        if self.state is None:
            return 0
        seen = self.state["seen"]
        if bool((seen != seen[:1]).any()):
            raise NotOfferedError(f"no rows of which one has read {int(seen.min())} tokens and another {int(seen.max())}")
        return int(seen[0])

    def update(self, layer_idx: int = 0, offset: int = 1, **parts: Any) -> dict[str, Any]:
        kept = {name: part for name, part in parts.items() if part is not None}
        first = next(iter(leaves(kept)))
        before = torch.zeros(len(first), dtype=torch.int64, device=first.device) if self.state is None else self.state["seen"]
        self.state = {**kept, "seen": before + offset}
        return self.state
