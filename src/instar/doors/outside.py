"""Layers of other packages as mixers, so that they can be checked and compared beside ours.

>>> class Mamba2(TransformersLayer):                                         # doctest: +SKIP
...     def make(self, width, heads):
...         config = Mamba2Config(hidden_size=width, num_heads=heads, head_dim=2 * width // heads, n_groups=1)
...         return Mamba2Mixer(config, layer_idx=0)

`instar check file.py:Mamba2`, `instar compare text --methods gla --add file.py:Mamba2`. What decides between the bases is what
the layer can carry: a cache of `transformers` or `fla` (see `instar.doors.outside_caches`), another state of fixed size
(`StatefulLayer`), or nothing (`StatelessLayer`). Layers know padding and packing in many ways or none, so that every sequence of
real tokens is run without its padding; how a layer's own mask does is asked by a subclass with `own_mask = True`.
"""

from __future__ import annotations

import abc
import itertools
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from instar.errors import ModelError, ShapeError
from instar.interfaces import Mixer
from instar.mixers.whole_sequence import WholeSequence
from instar.state import State, index_select, tree_map


class NotOfferedError(ModelError):
    """The layer has no such thing."""


class OutsideLayer(Mixer):
    """What both kinds have: `make` gives the layer.

    Args:
        width: D. heads: H.
    """

    own_mask: ClassVar[bool] = False
    """Whether padding is left to the layer itself, by its own mask. Packed rows are then refused."""

    def __init__(self, width: int, *, heads: int = 4) -> None:
        super().__init__()
        if width < 1 or heads < 1:
            raise ShapeError(f"width and heads must be at least 1; received {width} and {heads}.")
        self.width, self.heads = width, heads
        self.layer = self.make(width, heads)

    @abc.abstractmethod
    def make(self, width: int, heads: int) -> nn.Module:
        """The layer, whose inputs and outputs are [B, T, width]."""


class StatefulLayer(OutsideLayer):
    """A layer that continues from a state of fixed size.

    `reference` gives it one token at a time, so that its form for many tokens is held to its form for one. O(distinct patterns of
    padding) calls for a padded batch.
    """

    @abc.abstractmethod
    def run(self, x: Tensor, state: State, mask: Tensor | None = None) -> tuple[Tensor, State]:
        """x [B, T, D], T ≥ 1, from a state (None at the start) -> [B, T, D] and the state, a tree of tensors, batch first.

        The given state stays as it is. mask: only with `own_mask`.
        """

    def init_state(self, batch: int) -> State:
        """Zeros of the sizes that the state has after one token."""
        weight = next(self.layer.parameters())
        with torch.no_grad():
            _, state = self.run(weight.new_zeros(1, 1, self.width), None)
        return tree_map(lambda leaf: leaf.new_zeros(batch, *leaf.shape[1:]), state)

    def forward(
        self, x: Tensor, state: State = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """See `Mixer.forward`."""
        if x.shape[1] == 0:
            return x, self.init_state(x.shape[0]) if state is None else state
        if self.own_mask:
            if reset is not None:
                raise NotOfferedError("no packed rows")
            return self.run(x, state, mask)
        if mask is None and reset is None:
            return self.run(x, state)
        state = self.init_state(x.shape[0]) if state is None else state
        return self._by_token(x, state, mask, reset) if torch.compiler.is_compiling() else self._apart(x, state, mask, reset)

    def reference(
        self, x: Tensor, state: State = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Token by token."""
        if self.own_mask or (mask is None and reset is None):
            outputs = [x[:, :0]]
            for t in range(x.shape[1]):
                flags = {name: flag[:, t : t + 1] for name, flag in (("mask", mask), ("reset", reset)) if flag is not None}
                y, state = self(x[:, t : t + 1], state, **flags)
                outputs.append(y)
            return torch.cat(outputs, 1), self.init_state(x.shape[0]) if state is None else state
        return self._by_token(x, self.init_state(x.shape[0]) if state is None else state, mask, reset)

    def _by_token(self, x: Tensor, state: State, mask: Tensor | None, reset: Tensor | None) -> tuple[Tensor, State]:
        """Every token is run, and what padding did to the state is dropped."""
        empty = self.init_state(x.shape[0])
        if mask is not None:
            x = x.masked_fill(~mask.unsqueeze(-1), 0.0)
        outputs = [x[:, :0]]
        for t in range(x.shape[1]):
            if reset is not None:
                state = _where(reset[:, t], empty, state)
            y, after = self.run(x[:, t : t + 1], state)
            state = after if mask is None else _where(mask[:, t], after, state)
            outputs.append(y)
        return torch.cat(outputs, 1), state

    def _apart(self, x: Tensor, state: State, mask: Tensor | None, reset: Tensor | None) -> tuple[Tensor, State]:
        """Rows that are padded and packed alike are run together, sequence by sequence, without their padding."""
        pattern = torch.cat([flag for flag in (mask, reset) if flag is not None], 1)
        _, kind = pattern.unique(dim=0, return_inverse=True)
        order, outputs, states = kind.argsort(stable=True), [], []
        for rows in order.split(kind.bincount().tolist()):
            own, y = index_select(state, rows), x.new_zeros(len(rows), *x.shape[1:])
            starts = [] if reset is None else reset[rows[0]].nonzero().flatten().tolist()
            for begin, end in itertools.pairwise([0, *starts, x.shape[1]]):
                if begin in starts:
                    own = self.init_state(len(rows))
                token = torch.arange(begin, end, device=x.device)
                token = token if mask is None else token[mask[rows[0], begin:end]]
                if len(token):
                    part, own = self.run(x[rows][:, token], own)
                    y = y.index_copy(1, token, part.to(y.dtype))
            outputs.append(y)
            states.append(own)
        back = order.argsort()
        return torch.cat(outputs)[back], index_select(tree_map(lambda *parts: torch.cat(parts), *states), back)


class StatelessLayer(OutsideLayer, WholeSequence):
    """A causal layer without a cache. Its state is the inputs so far: each call runs the layer over all of them again.

    Exact, and a whole pass for every further token: read what decoding costs accordingly. With `own_mask` there is no state.
    """

    @abc.abstractmethod
    def run(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [B, T, D], T ≥ 1 -> [B, T, D]; mask only with `own_mask`. Without it padding stands on the right, as zeros."""

    def mix(self, x: Tensor, real: Tensor) -> Tensor:
        """Padding on the right is not seen by a causal layer."""
        return self.run(x).masked_fill(~real.unsqueeze(-1), 0.0)

    def alone(self, x: Tensor) -> Tensor:
        """One sequence."""
        return self.run(x.unsqueeze(0))[0]

    def init_state(self, batch: int) -> State:
        """Nothing read."""
        if self.own_mask:
            return None
        weight = next(self.layer.parameters())
        none = torch.zeros(batch, 0, dtype=torch.bool, device=weight.device)
        return {"inputs": weight.new_zeros(batch, 0, self.width), "mask": none, "reset": none}

    def forward(
        self, x: Tensor, state: State = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """See `Mixer.forward`."""
        if not self.own_mask:
            return self._again(super().forward, x, state, mask, reset)
        if reset is not None:
            raise NotOfferedError("no packed rows")
        self._no_state(state)
        return (self.run(x, mask) if x.shape[1] else x), None

    def reference(
        self, x: Tensor, state: State = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Every sequence alone."""
        if not self.own_mask:
            return self._again(super().reference, x, state, mask, reset)
        return super().reference(x, state, mask=mask, reset=reset)

    def _again(self, way: Any, x: Tensor, state: State, mask: Tensor | None, reset: Tensor | None) -> tuple[Tensor, State]:
        before = self.init_state(x.shape[0]) if state is None else state
        new = {
            "inputs": x,
            "mask": torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask,
            "reset": torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device) if reset is None else reset,
        }
        after = {name: torch.cat([before[name], part], 1) for name, part in new.items()}
        given = {"mask": mask, "reset": reset} if before["inputs"].shape[1] == 0 else {k: after[k] for k in ("mask", "reset")}
        y, _ = way(after["inputs"], None, **given)
        return y[:, before["inputs"].shape[1] :], after


def _where(chosen: Tensor, a: State, b: State) -> State:
    """Rows of `a` where chosen, of `b` elsewhere."""
    return tree_map(lambda x, y: torch.where(chosen.view(-1, *[1] * (x.dim() - 1)), x, y), a, b)
