"""What becomes of an optimiser when the parameters that it trains are replaced, or when there are more of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from instar.errors import TransformError

Role = Literal["gradient", "square"]
"""What an entry of a state is made of: gradients (a momentum), or their squares."""
_SQUARES = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "acc_delta", "sum")
"""Names that torch's optimisers give to averages and sums of squares."""
_STOPPED = ("ax", "step_size")
"""An average of the parameter itself (ASGD), and the step of each number (Rprop): zeros would be wrong at new places."""


class Kept:
    """The parameters and the state of an optimiser at one moment, and changes of them that can be taken back as one.

    `None` is an optimiser too: of nobody. Raises TransformError for an optimiser of another model, and for one that keeps more
    about its parameters than groups and state.
    """

    def __init__(self, optimiser: torch.optim.Optimizer | None, model: nn.Module) -> None:
        self.optimiser = optimiser
        if optimiser is None:
            return
        if keeps := getattr(optimiser, "keeps", ""):
            raise TransformError(
                f"{type(optimiser).__name__} keeps {keeps}, which cannot grow with them. Leave the optimiser out and make a new "
                "one for the other model."
            )
        self._groups = [list(group["params"]) for group in optimiser.param_groups]
        self._named = [list(group.get("param_names", ())) for group in optimiser.param_groups]
        self._states = [dict(state) for state in _states(optimiser)]
        self._names = {id(p): name for name, p in model.named_parameters()}
        if foreign := sum(id(p) not in self._names for group in self._groups for p in group):
            raise TransformError(f"The optimiser trains {foreign} parameters that are not of this {type(model).__name__}.")

    def replace(self, old: nn.Parameter, new: nn.Parameter | None, grown: Callable[[Tensor, Role], Tensor] | None) -> None:
        """`new` in the place of `old`, or nobody; what the state has of its shape is what `grown` makes of it, or gone.

        Raises TransformError where the optimiser keeps tensors of other shapes for it, or others than averages of gradients
        where it becomes longer.
        """
        if self.optimiser is None:
            return
        for group in self.optimiser.param_groups:
            group["params"][:] = [new if p is old else p for p in group["params"] if p is not old or new is not None]
        for states in _states(self.optimiser):
            state: Mapping[str, Any] | None = states.pop(old, None)
            if state is not None and new is not None and grown is not None:
                states[new] = self._entries(state, old, grown, longer=new.numel() > old.numel())

    def _entries(
        self, state: Mapping[str, Any], old: nn.Parameter, grown: Callable[[Tensor, Role], Tensor], *, longer: bool
    ) -> dict[str, Any]:
        entries: dict[str, Any] = {}
        for name, value in state.items():
            if not isinstance(value, Tensor):
                entries[name] = value
            elif not value.dim():
                entries[name] = value.clone()  # a count of steps, which is added to in place
            elif value.shape == old.shape and not (name in _STOPPED and longer):
                entries[name] = grown(value, "square" if name in _SQUARES else "gradient")
            else:
                raise TransformError(
                    f"{type(self.optimiser).__name__} keeps '{name}' of shape {tuple(value.shape)} for "
                    f"{self._names.get(id(old), 'a parameter')} of shape {tuple(old.shape)}, which cannot grow with it. Leave "
                    "the optimiser out and make a new one for the larger model."
                )
        return entries

    def merge(self, old: Sequence[nn.Parameter], new: nn.Parameter) -> None:
        """`new`, the rows of all `old` ones, in the place of the first; rows without state get zeros, counts are the first's."""
        if self.optimiser is None:
            return
        for group in self.optimiser.param_groups:
            rest = [p for p in group["params"] if all(p is not one for one in old[1:])]
            group["params"][:] = [new if p is old[0] else p for p in rest]
        for states in _states(self.optimiser):
            found = [states.pop(p, None) for p in old]
            known = next((state for state in found if state is not None), None)
            if known is None:
                continue
            entries: dict[str, Any] = {}
            for name, value in known.items():
                if isinstance(value, Tensor) and value.dim():
                    rows = [p.new_zeros(p.shape) if state is None else state[name] for p, state in zip(old, found, strict=True)]
                    entries[name] = torch.cat(rows)
                else:
                    entries[name] = value.clone() if isinstance(value, Tensor) else value
            states[new] = entries

    def append(self, new: nn.Parameter, beside: Sequence[nn.Parameter]) -> None:
        """Train `new` in the group of the last of `beside` that is trained; it has no state yet and counts its own steps.

        Raises TransformError where none of them is: nobody would train `new`, which asks for gradients.
        """
        if self.optimiser is None or not new.requires_grad:
            return
        for old in reversed(beside):
            for group in self.optimiser.param_groups:
                if any(p is old for p in group["params"]):
                    group["params"].append(new)
                    return
        raise TransformError(
            f"The optimiser trains nothing of {self._names.get(id(beside[-1]), 'what grows')}, beside which new parameters would "
            "be trained. Give it one of those parameters, or leave it out and make a new one for the larger model."
        )

    def rename(self, model: nn.Module) -> None:
        """Groups that say what their parameters are called say it of those of now."""
        if self.optimiser is None:
            return
        names = {id(p): name for name, p in model.named_parameters()}
        for group in self.optimiser.param_groups:
            if "param_names" in group:
                group["param_names"] = [names[id(p)] for p in group["params"]]

    def restore(self) -> None:
        """As it was at the start."""
        if self.optimiser is None:
            return
        for group, params, names in zip(self.optimiser.param_groups, self._groups, self._named, strict=True):
            group["params"][:] = params
            if "param_names" in group:
                group["param_names"] = names
        for state, before in zip(_states(self.optimiser), self._states, strict=True):
            state.clear()
            state.update(before)


def _states(optimiser: torch.optim.Optimizer) -> list[dict[Any, Any]]:
    """The states of an optimiser and of those that it is made of, each once."""
    parts = [one for value in vars(optimiser).values() for one in (value if isinstance(value, list) else [value])]
    every = [optimiser, *(part for part in parts if isinstance(part, torch.optim.Optimizer))]
    return list({id(one.state): one.state for one in every}.values())
