"""A cache of keys and values of `transformers` whose rows have lengths of their own. Importing it imports `transformers`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from instar import extras
from instar.errors import ModelError, ShapeError
from instar.kernels.quantised_rows import dequantise_rows, quantise_rows

cache_utils: Any = extras.require("transformers.cache_utils", "models")

BLOCK = 128
"""Columns by which a cache grows at least."""
_SCALE = "_instar_scale"


class RaggedLayer(cache_utils.CacheLayerMixin):
    """Keys and values [B, Hkv, C, ·] of one layer; row b fills its first lengths[b] columns.

    Where they are `quantised` they lie there as int8, with a float32 scale [B, Hkv, C] each, which `scales_of` finds on what
    `update` gives for one token a row; a prompt reads what it and those before it were rounded to.

    Memory is asked for and not touched beyond what is filled, so that the system gives it out by need.
    """

    is_compileable = False
    is_croppable = False
    is_sliding = False
    supports_early_init = False

    def __init__(self, rows: int, capacity: int, quantised: bool = False) -> None:
        super().__init__()
        self.quantised = quantised
        self.lengths = [0] * rows
        self.capacity = capacity
        self.row: int | None = None
        """The row that is being filled; None: all of them, by one token each."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Room for `capacity` columns of the given types and widths."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self._make_room((key_states.shape[1], key_states.shape[3]), (value_states.shape[1], value_states.shape[3]))
        self.is_initialized = True

    def _make_room(self, *sizes: tuple[int, int]) -> None:
        """Empty keys and values of so many heads of such a width."""
        dtype = torch.int8 if self.quantised else self.dtype
        room = [(len(self.lengths), heads, self.capacity, width) for heads, width in sizes]
        self.keys, self.values = (torch.empty(one, dtype=dtype, device=self.device) for one in room)
        if self.quantised:
            self.key_scale, self.value_scale = (torch.empty(one[:3], dtype=torch.float32, device=self.device) for one in room)

    def _parts(self) -> list[Tensor]:
        """All that has rows and columns."""
        return [self.keys, self.values, *((self.key_scale, self.value_scale) if self.quantised else ())]

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append T tokens to the row that is being filled, or one to every row; what those rows then hold.

        Raises ShapeError for a batch of another size, and for several tokens a row outside `RaggedCache.filling`.
        """
        B, T = key_states.shape[0], key_states.shape[2]
        wanted = len(self.lengths) if self.row is None else 1
        if wanted != B or (self.row is None and T != 1):
            raise ShapeError(
                f"A ragged cache of {len(self.lengths)} rows takes one token for each of them, or a prompt inside "
                f"`with cache.filling(row)`; received {B} rows of {T} tokens."
            )
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self._grow(T + (max(self.lengths) if self.row is None else self.lengths[self.row]))
        given = [key_states, value_states]
        if self.quantised:
            (keys, key_scale), (values, value_scale) = quantise_rows(key_states), quantise_rows(value_states)
            given = [keys, values, key_scale, value_scale]
        if self.row is not None:
            start = self.lengths[self.row]
            self.lengths[self.row] += T
            rows, columns = slice(self.row, self.row + 1), start + T
            for part, new in zip(self._parts(), given, strict=True):
                part[self.row, :, start:columns] = new[0]
        else:
            chosen, place = torch.arange(B, device=self.device), torch.tensor(self.lengths, device=self.device)
            for part, new in zip(self._parts(), given, strict=True):
                part[chosen, :, place] = new[:, :, 0]
            self.lengths = [length + 1 for length in self.lengths]
            rows, columns = slice(None), max(self.lengths)
        found = [part[rows, :, :columns] for part in self._parts()]
        if self.quantised:
            if self.row is not None:
                return tuple(dequantise_rows(found[i], found[i + 2], self.dtype) for i in (0, 1))  # type: ignore[return-value]
            for numbers, scale in zip(found[:2], found[2:], strict=True):
                setattr(numbers, _SCALE, scale)
        return found[0], found[1]

    def _grow(self, columns: int) -> None:
        if columns <= self.capacity:
            return
        self.capacity = max(columns, self.capacity + max(BLOCK, self.capacity // 2))
        old = self._parts()
        self._make_room(*((part.shape[1], part.shape[3]) for part in old[:2]))
        for before, now in zip(old, self._parts(), strict=True):
            for row, length in enumerate(self.lengths):
                now[row, :, :length] = before[row, :, :length]

    def get_seq_length(self) -> int:
        """Tokens of the row that is being filled, or of the longest one."""
        return max(self.lengths, default=0) if self.row is None else self.lengths[self.row]

    def get_max_length(self) -> int:
        """-1: there is no limit."""
        return -1

    get_max_cache_shape = get_max_length  # its former name

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns of a mask over what was read and `query_length` tokens more, and where it starts."""
        return self.get_seq_length() + query_length, 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """The chosen rows, in that order."""
        chosen = beam_idx.tolist()
        if self.is_initialized:
            parts = [part.index_select(0, beam_idx.to(part.device)) for part in self._parts()]
            self.keys, self.values = parts[:2]
            if self.quantised:
                self.key_scale, self.value_scale = parts[2:]
        self.lengths = [self.lengths[row] for row in chosen]

    batch_select_indices = reorder_cache

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row `repeats` times."""
        self.reorder_cache(torch.arange(len(self.lengths)).repeat_interleave(repeats))

    def reset(self) -> None:
        """As before the first token."""
        self.lengths = [0] * len(self.lengths)

    def crop(self, *_: Any) -> None:
        """Raises ModelError."""
        raise ModelError("A ragged cache cannot be cropped to one length. Fill a new one with the shorter texts.")


def scales_of(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor] | None:
    """The scales [B, Hkv, C] of int8 keys and values that a quantised layer gave; None for others."""
    found = [getattr(part, _SCALE, None) for part in (keys, values)]
    return None if found[0] is None or found[1] is None else (found[0], found[1])


class RaggedCache(cache_utils.Cache):
    """Keys and values of a batch whose rows have lengths of their own: no padding is stored, computed or read.

        cache = RaggedCache(rows=2, layers=model.config.num_hidden_layers)
        for row, prompt in enumerate(prompts):
            with cache.filling(row):
                model(input_ids=prompt, cache=cache)
        model(input_ids=tokens, attention_mask=cache.mask(), position_ids=cache.positions(), cache=cache)

    Args:
        rows: B. layers: of the model, all of them with full attention. capacity: columns to begin with; it grows.
        quantised: keys and values as int8 with a scale a row of each head, for the attention function `instar_decode` alone: a
            quarter of the bytes of float32, half of those of bfloat16, and rounded to 1/127 of the largest number of a row.
    """

    def __init__(self, rows: int, layers: int, capacity: int = BLOCK, *, quantised: bool = False) -> None:
        if min(rows, layers, capacity) < 1:
            raise ShapeError(f"A ragged cache expects at least one row, layer and column; received {rows}, {layers}, {capacity}.")
        super().__init__(layers=[RaggedLayer(rows, capacity, quantised) for _ in range(layers)])

    @property
    def lengths(self) -> Tensor:
        """int64 [B], tokens of each row."""
        return torch.tensor(self.layers[0].lengths)

    @contextlib.contextmanager
    def filling(self, row: int) -> Iterator[None]:
        """Inside the block the cache is that of one row: a prompt [1, T] continues it."""
        if not 0 <= row < len(self.layers[0].lengths):
            raise ShapeError(f"A ragged cache of {len(self.layers[0].lengths)} rows has no row {row}.")
        for layer in self.layers:
            layer.row = row
        try:
            yield
        finally:
            for layer in self.layers:
                layer.row = None

    def mask(self) -> Tensor:
        """int64 [B, longest + 1], what each row's next token may see: its own tokens and itself."""
        lengths = self.lengths
        return (torch.arange(int(lengths.max()) + 1) <= lengths.unsqueeze(1)).long()

    def positions(self) -> Tensor:
        """int64 [B, 1], the position of each row's next token."""
        return self.lengths.unsqueeze(1)
