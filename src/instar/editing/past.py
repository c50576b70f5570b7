"""What stands before the subject of each row, run once and kept as keys and values."""

from __future__ import annotations

import contextlib
import inspect
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from instar.editing.layout import Layout
from instar.editing.rows import Rows
from instar.editing.running import on_input

_CACHES = ("cache", "past_key_values")
"""How `transformers` calls keys and values, now and before."""


@dataclass(frozen=True)
class Past:
    """Keys and values of B rows before their subjects: valid while the weights and what stands there stay as they are."""

    name: str
    """Of the argument that takes them."""
    first: int
    """The first layer whose keys and values are kept; the layers below it are never asked for theirs."""
    layers: list[tuple[Tensor, Tensor]]
    """Of every layer from it up [B, H, S, d]."""
    before: Tensor
    """int64 [B]: tokens before the subject; beyond them the keys and values are padding."""

    @classmethod
    def of(cls, model: nn.Module, layout: Layout, rows: Rows, batch: int = 64) -> Past | None:
        """None where nothing stands before, or the model does not take keys and values with the places of what follows them.

        Rows that are alike before the subject's last token run once.
        """
        known = inspect.signature(model.forward).parameters
        longest, name = int(rows.subject.max()), next((one for one in _CACHES if one in known), None)
        if not longest or name is None or "position_ids" not in known:
            return None
        real = torch.arange(longest, device=rows.ids.device) < rows.subject[:, None]
        distinct, which = torch.where(real, rows.ids[:, :longest], -1).unique(dim=0, return_inverse=True)
        parts: list[list[tuple[Tensor, Tensor]]] = []
        with torch.no_grad(), contextlib.ExitStack() as stack:
            if layout.head is not None:
                stack.enter_context(on_input(layout.head, lambda hidden: hidden[:, :1]))
            for ids in distinct.clamp(min=0).split(batch):
                cache: Any = getattr(model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True), name, None)
                if not hasattr(cache, "layers"):
                    return None
                parts.append([(layer.keys, layer.values) for layer in cache.layers])
        layers = [(torch.cat([one[0] for one in same]), torch.cat([one[1] for one in same])) for same in zip(*parts, strict=True)]
        return cls(name, 0, [(keys[which], values[which]) for keys, values in layers], rows.subject)

    def above(self, first: int) -> Past:
        """Without the layers below `first`."""
        first = min(first, self.first + len(self.layers) - 1)
        return replace(self, first=first, layers=self.layers[first - self.first :])

    def take(self, places: Tensor) -> Past:
        """That of some rows."""
        before = self.before[places]
        longest = int(before.max())
        return replace(self, before=before, layers=[(k[places, :, :longest], v[places, :, :longest]) for k, v in self.layers])

    def given(self, mask: Tensor) -> dict[str, Any]:
        """Arguments of the model for what follows, whose mask is [B, U]; in a cache of its own, since the model appends to it."""
        from transformers import DynamicCache  # the model is one of these

        cache: Any = DynamicCache()
        for number in range(self.first + len(self.layers)):
            keys, values = self.layers[max(0, number - self.first)]
            cache.update(keys[:, :, :0], values[:, :, :0], number)  # nothing is copied
            cache.layers[number].keys, cache.layers[number].values = keys, values
        seen = (torch.arange(keys.shape[2], device=keys.device) < self.before[:, None]).long()
        return {
            self.name: cache,
            "attention_mask": torch.cat([seen, mask], 1),
            "position_ids": self.before[:, None] + mask.cumsum(1) - 1,  # padding stands where the last token does
        }
