"""Muon for matrices with AdamW for the rest, as it is used: torch's own Muon behind one optimiser."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from instar.anatomy.linear import Linear, linears
from instar.errors import CheckpointError
from instar.optim.first_order import Whole, parameters, tensor_bytes


class Muon(Whole):
    r"""W ← W - η · √max(1, out / in) · NewtonSchulz(momentum) for hidden matrices; AdamW for all else.

    Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/, by `torch.optim.Muon`.

    Args:
        model: the matrices of its linear layers (`transformers` Conv1D among them) go to Muon, but not the head, for which its
            authors keep AdamW: the embedding where they are tied, and the last linear layer elsewhere.
        lr: η of Muon. momentum, weight_decay: of it. adamw_lr: of AdamW, as a share of `lr`.

    State: one number for each of the matrices and two for the rest.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        adamw_lr: float = 0.1,
    ) -> None:
        every = parameters(model)
        groups: dict[float, list[nn.Parameter]] = {}
        for layer in _hidden(model):
            # torch's Muon takes the rows for the outputs; of a weight that is stored transposed they are the inputs.
            share = math.sqrt(layer.outputs / layer.inputs) if layer.transposed else 1.0
            groups.setdefault(share, []).append(layer.parameter)
        hidden = {id(p) for group in groups.values() for p in group}
        rest = [p for p in every if id(p) not in hidden]
        parts: list[torch.optim.Optimizer] = []
        if groups:
            matrices = [{"params": group, "lr": lr * share} for share, group in groups.items()]
            parts.append(torch.optim.Muon(matrices, lr=lr, momentum=momentum, weight_decay=weight_decay))
        if rest:
            parts.append(torch.optim.AdamW(rest, lr=lr * adamw_lr, weight_decay=0.0, foreach=True))
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share()

    def __getstate__(self) -> dict[str, Any]:
        """With both of its parts, which a copy shares groups with as this one does."""
        return {**super().__getstate__(), "parts": self.parts}

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; nothing changes where a gradient is not finite. With a closure, the loss is its value."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self.ready():
            for part in self.parts:
                part.step()
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """A further group goes to AdamW, whatever it holds."""
        if "parts" in self.__dict__ and len(self.param_groups) == sum(len(part.param_groups) for part in self.parts):
            self.parts[-1].add_param_group(param_group)
            self._share()
        else:  # the base class, while it is made
            super().add_param_group(param_group)

    def state_bytes(self) -> int:
        return sum(tensor_bytes(part.state.values()) for part in self.parts)

    def state_dict(self) -> dict[str, Any]:
        """Those of both, and "state" and "param_groups" for who looks at them."""
        return {"state": {}, "param_groups": [], "parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raises CheckpointError for the state of another model or optimiser."""
        found = state_dict.get("parts", [])
        sizes = [[len(g["params"]) for g in part["param_groups"]] for part in found]
        if sizes != [[len(g["params"]) for g in part.param_groups] for part in self.parts]:
            raise CheckpointError("This state is that of another optimiser, or of a model with other parameters.")
        for part, state in zip(self.parts, found, strict=True):
            part.load_state_dict(state)
        self._share()

    def _share(self) -> None:
        """The groups of both, so that a scheduler changes both."""
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def _hidden(model: nn.Module) -> list[Linear]:
    """Linear layers that are trained, each weight once; the head, embeddings and what shares their weight are apart."""
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    every = linears(model)
    # A tied head may be no module at all, as in our decoders, or a linear layer with the weight of the embedding.
    tied = getattr(model, "tied", False) or any(id(layer.module.weight) in tables for layer in every)
    apart = tables if tied else tables | {id(layer.module.weight) for layer in every[-1:]}
    found = {id(layer.module.weight): layer for layer in every if id(layer.module.weight) not in apart}
    return [layer for layer in found.values() if isinstance(layer.module.weight, nn.Parameter) and layer.parameter.requires_grad]
