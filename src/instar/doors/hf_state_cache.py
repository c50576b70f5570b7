"""A cache of `transformers` that holds the states of our mixers.

One layer of the cache is one state: it is never written in place, so that reordering for beams is `state.index_select`. Importing
this module imports `transformers`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor

from instar import extras
from instar import state as states
from instar.errors import ModelError
from instar.state import State

cache_utils: Any = extras.require("transformers.cache_utils", "models")


class StateLayer(cache_utils.CacheLayerMixin):
    """The state of one mixer, and how many real tokens each row of it has read."""

    is_compileable = False
    is_croppable = False
    is_sliding = False
    supports_early_init = False

    def __init__(self) -> None:
        super().__init__()
        self.state: State = None
        self.position: Tensor | None = None
        """int64 [B], real tokens."""

    def write(self, state: State, position: Tensor) -> None:
        """Hold the state after `position` [B] real tokens."""
        self.state, self.position, self.is_initialized = state, position, True

    def change(self, function: Callable[[Tensor], Tensor]) -> None:
        """Apply a function of rows to every tensor."""
        if self.position is not None:
            self.write(states.tree_map(function, self.state), function(self.position))

    def get_seq_length(self) -> int:
        """Real tokens of the row that has read most."""
        return 0 if self.position is None or not len(self.position) else int(self.position.max())

    def get_max_length(self) -> int:
        """-1: there is no limit."""
        return -1

    get_max_cache_shape = get_max_length  # its former name

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns of a mask over what was read and `query_length` tokens more, and where it starts."""
        return self.get_seq_length() + query_length, 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """The chosen rows, in that order."""
        if self.position is not None:
            self.write(states.index_select(self.state, beam_idx), states.index_select(self.position, beam_idx))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row `repeats` times."""
        self.change(lambda leaf: leaf.repeat_interleave(repeats, 0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """The chosen rows, by number or by a mask."""
        self.change(lambda leaf: leaf[indices.to(leaf.device)])

    def reset(self) -> None:
        """As before the first token."""
        self.state, self.position, self.is_initialized = None, None, False

    def crop(self, *_: Any) -> NoReturn:
        """Raises ModelError: a state cannot forget its last tokens."""
        raise ModelError(
            "A recurrent state cannot be cropped: what it read is not kept. Copy the cache (copy.deepcopy) before tokens that "
            "may be taken back, or read the shorter text again."
        )

    def update(self, *_: Any, **__: Any) -> NoReturn:
        """Raises ModelError: keys and values are not what this holds."""
        raise ModelError("This cache holds states of mixers, not keys and values: it serves InstarForCausalLM alone.")

    lazy_initialization = update


class ColumnLayer(StateLayer):
    """The state of a mixer among layers of keys and values: its length counts columns as theirs do, padding included."""

    def __init__(self) -> None:
        super().__init__()
        self.columns = 0

    def advance(self, state: State, B: int, T: int, mask: Tensor | None, device: torch.device) -> None:
        """Hold the state after T more columns, of which those in `mask` [B, T] are real."""
        before = torch.zeros(B, dtype=torch.int64, device=device) if self.position is None else self.position
        self.write(state, before + (T if mask is None else mask.sum(1)))
        self.columns += T

    def get_seq_length(self) -> int:
        """Columns."""
        return self.columns

    def reset(self) -> None:
        super().reset()
        self.columns = 0


class StateCache(cache_utils.Cache):
    """What `InstarForCausalLM` has read: the states of all layers.

    Args:
        layers: how many.
    """

    def __init__(self, layers: int) -> None:
        super().__init__(layers=[StateLayer() for _ in range(layers)])

    def read(self) -> State:
        """The state as a `Decoder` takes it; None before the first token."""
        if not self.layers or self.layers[0].position is None:
            return None
        return {"position": self.layers[0].position, "layers": tuple(layer.state for layer in self.layers)}

    def write(self, state: State) -> None:
        """Hold the state that a `Decoder` returned."""
        for layer, part in zip(self.layers, state["layers"], strict=True):
            layer.write(part, state["position"])
