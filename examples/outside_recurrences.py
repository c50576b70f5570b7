"""Recurrences of other packages for `check_outside_mixers.py`, with the states that they keep.

Those of `instar.doors.outside_layers` can be compared at once. What stands here is no layer of its own, or does not continue from
its state as it should (the findings say how).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.doors.outside import NotOfferedError, StatefulLayer
from instar.doors.outside_layers import layer_of
from instar.state import State


class RecurrentGemmaBlock(StatefulLayer):
    """The real-gated linear recurrent unit of Griffin behind a short convolution, of transformers."""

    def make(self, width: int, heads: int) -> nn.Module:
        inside = {"num_attention_heads": heads, "num_key_value_heads": 1, "lru_width": width, "head_dim": width // heads}
        return layer_of("RecurrentGemmaConfig", "layers.0.temporal_block", hidden_size=width, **inside)

    def run(self, x: Tensor, state: State, mask: Tensor | None = None) -> tuple[Tensor, State]:
        if mask is not None:
            raise NotOfferedError("no padding")
        layer: Any = self.layer
        count = torch.zeros(len(x), dtype=torch.int64, device=x.device) if state is None else state["count"]
        layer.conv1d_state, layer.rg_lru.recurrent_states = (None, None) if state is None else (state["conv"], state["memory"])
        try:
            y, _ = layer(x, count[:, None] + torch.arange(x.shape[1], device=x.device), None)
            return y, {"conv": layer.conv1d_state, "memory": layer.rg_lru.recurrent_states, "count": count + x.shape[1]}
        finally:
            layer.conv1d_state = layer.rg_lru.recurrent_states = None


class RwkvTimeMixing(StatefulLayer):
    """Time mixing of RWKV-4 in transformers: a decayed mean of values, weighted by exponentials of keys."""

    def make(self, width: int, heads: int) -> nn.Module:
        return layer_of("RwkvConfig", "blocks.0.attention", hidden_size=width, context_length=1)

    def init_state(self, batch: int) -> State:
        """Nothing before; the running maximum of the keys starts at −1e38, as the layer has it."""
        zero = self.layer.key.weight.new_zeros(batch, self.width)  # type: ignore[union-attr, operator]
        single = zero.float()
        return {"shift": zero, "numerator": single, "denominator": single, "maximum": torch.full_like(single, -1e38)}

    def run(self, x: Tensor, state: State, mask: Tensor | None = None) -> tuple[Tensor, State]:
        if mask is not None:
            raise NotOfferedError("no padding")
        if state is None and torch.is_grad_enabled():  # in training its model gives it no state
            with torch.no_grad():
                after = self.run(x, None)[1]
            return self.layer(x)[0], after
        names = ("shift", "numerator", "denominator", "maximum")
        given = self.init_state(len(x)) if state is None else state
        kept = [given["shift"].unsqueeze(-1), *(given[name].unsqueeze(-1).clone() for name in names)]  # written in place
        y, found = self.layer(x, state=kept, use_cache=True)
        return y, {name: part.squeeze(-1) for name, part in zip(names, found[1:], strict=True)}


class MinGRU(StatefulLayer):
    """minGRU of `minGRU-pytorch`: a scan in log space for many tokens, the recurrence for one."""

    def make(self, width: int, heads: int) -> nn.Module:
        from minGRU_pytorch.minGRU import minGRU

        return minGRU(width)

    def run(self, x: Tensor, state: State, mask: Tensor | None = None) -> tuple[Tensor, State]:
        if mask is not None:
            raise NotOfferedError("no padding")
        return self.layer(x, state, return_next_prev_hidden=True)

    def init_state(self, batch: int) -> State:
        return None  # the package's word for "nothing before"


class MinLSTM(MinGRU):
    """minLSTM of the same package."""

    def make(self, width: int, heads: int) -> nn.Module:
        from minGRU_pytorch.minLSTM import minLSTM

        return minLSTM(width)


class FlaRule(StatefulLayer):
    """A rule of `fla` in its pure-torch form, between projections: layers of `fla` run Triton kernels, which need a GPU."""

    gates = 1  # a head

    def make(self, width: int, heads: int) -> nn.Module:
        parts = {name: nn.Linear(width, width, bias=False) for name in ("q", "k", "v", "out")}
        return nn.ModuleDict({**parts, "gate": nn.Linear(width, self.gates * heads), "beta": nn.Linear(width, heads)})

    def run(self, x: Tensor, state: State, mask: Tensor | None = None) -> tuple[Tensor, State]:
        if mask is not None:
            raise NotOfferedError("no padding")
        layer: Any = self.layer
        q, k, v = (layer[name](x).unflatten(-1, (self.heads, -1)) for name in "qkv")
        gate = F.logsigmoid(layer["gate"](x).unflatten(-1, (self.heads, self.gates)))
        y, state = self.rule(F.normalize(q, dim=-1), F.normalize(k, dim=-1), v, gate, layer["beta"](x).sigmoid(), state)
        return layer["out"](y.flatten(2).to(x.dtype)), state

    def rule(self, q: Tensor, k: Tensor, v: Tensor, gate: Tensor, beta: Tensor, state: State) -> tuple[Tensor, State]:
        """All [B, T, H, …] -> [B, T, H, V] and the state [B, H, K, V]."""
        raise NotImplementedError


class FlaGLA(FlaRule):
    """Gated linear attention, token by token."""

    def __init__(self, width: int, *, heads: int = 4) -> None:
        self.gates = width // heads
        super().__init__(width, heads=heads)

    def rule(self, q: Tensor, k: Tensor, v: Tensor, gate: Tensor, beta: Tensor, state: State) -> tuple[Tensor, State]:
        from fla.ops.gla.naive import naive_recurrent_gla

        return naive_recurrent_gla(q, k, v, gate, state, output_final_state=True)


class FlaKDA(FlaGLA):
    """Kimi's delta rule, token by token."""

    def rule(self, q: Tensor, k: Tensor, v: Tensor, gate: Tensor, beta: Tensor, state: State) -> tuple[Tensor, State]:
        from fla.ops.kda.naive import naive_recurrent_kda

        return naive_recurrent_kda(q, k, v, gate, beta, initial_state=state, output_final_state=True)


class FlaGatedDeltaRule(FlaRule):
    """The gated delta rule: chunks for many tokens, the recurrence for one."""

    def rule(self, q: Tensor, k: Tensor, v: Tensor, gate: Tensor, beta: Tensor, state: State) -> tuple[Tensor, State]:
        from fla.ops.gated_delta_rule import naive

        form = naive.naive_chunk_gated_delta_rule if q.shape[1] > 1 else naive.naive_recurrent_gated_delta_rule
        return form(q, k, v, g=gate.squeeze(-1), beta=beta, initial_state=state, output_final_state=True)
