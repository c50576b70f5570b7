"""Writing shifts of states into weights, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from instar.anatomy import Linear
from instar.editing.above import Above
from instar.editing.gelu import fused
from instar.editing.layout import Layer, Layout, Part
from instar.editing.rows import Row, pack
from instar.editing.running import resting
from instar.editing.spread import Spread, share, solve
from instar.editing.statistics import Moments
from instar.editing.targets import prompts
from instar.errors import ModelError
from instar.interfaces import Fact


class Subjects:
    """The facts' subjects in their prompts, bare and after prefixes: what layers read there, and what they put out."""

    def __init__(
        self, model: nn.Module, layout: Layout, tokenizer: Any, facts: Sequence[Fact], prefixes: Sequence[str], first: int
    ) -> None:
        self.model, self.facts, self.prompts = model, len(facts), len(prefixes) + 1
        made = [one for fact in facts for one in prompts(tokenizer, fact, prefixes)]
        # What stands after the subject has no say at it.
        cut = [Row(one.ids[: one.subject + 1], one.subject, [one.subject], []) for one in made]
        with resting(model):
            self.above = Above(model, layout, pack(cut, next(model.parameters()).device), first)

    @torch.no_grad()
    def read(
        self, keys: Sequence[Linear], top: Layer, values: Sequence[Part], batch: int = 64
    ) -> tuple[list[Tensor], list[Tensor]]:
        """k of some linear layers, ½ bare prompt + ½ mean over prefixes [in, N], and outputs of parts of `top` there [D, N]."""
        wanted: dict[str, tuple[nn.Module, str]] = {f"key {i}": (linear.module, "in") for i, linear in enumerate(keys)}
        wanted |= {f"value {part}": (top.module(part), "out") for part in values}
        found: dict[str, list[Tensor]] = {name: [] for name in wanted}
        places = torch.arange(self.facts * self.prompts, device=self.above.rows.ids.device)
        with resting(self.model), fused(self.model):
            for chosen in places.split(batch):
                for name, value in self.above.take(chosen).run(read=wanted, until=top)[1].items():
                    found[name].append(value.double())
        whole = {name: torch.cat(parts).view(self.facts, self.prompts, -1) for name, parts in found.items()}
        means = [whole[f"key {i}"] for i in range(len(keys))]
        averaged = [k[:, 0] if self.prompts == 1 else (k[:, 0] + k[:, 1:].mean(1)) / 2 for k in means]
        return [k.T for k in averaged], [whole[f"value {part}"][:, 0].T for part in values]


def write(
    subjects: Subjects,
    layers: Sequence[Layer],
    goals: Mapping[Part, Tensor],
    into: Mapping[Part, Part],
    moments: Moments,
    penalty: float | None,
    ratio: float,
    spread: Spread,
) -> None:
    """Change weights in place so that the last of `layers` puts out the goals at the subjects.

    For layer i = 0 … n − 1, ascending: r = goal − what stands there now, Δ = solve(C, K, share(i) · r), W ← W + Δ; keys and the
    output at the last layer are read again after each change.

    Args:
        goals: part -> wanted output of the last layer [N, D]. into: part -> ffn or attention, the layer that is written for it.
        penalty: λ; None takes `ratio` times the width of what the layer reads.

    Raises ModelError for a change that is not finite, EditError for a singular C.
    """
    parts = list(goals)
    for place, layer in enumerate(layers):
        linears = [layer.linear(into[part]) for part in parts]
        keys, now = subjects.read(linears, layers[-1], parts)
        for part, linear, K, current in zip(parts, linears, keys, now, strict=True):
            missing = goals[part].double().T - current
            wanted = share(spread, place, len(layers)) * missing
            weight = ratio * linear.inputs if penalty is None else penalty
            C = moments[layer.index, into[part]].to(K.device)  # from disk it comes to the CPU
            add(linear, solve(C, K, wanted, weight))


@torch.no_grad()
def add(linear: Linear, change: Tensor) -> None:
    """W ← W + Δ [out, in], in float32 or better. Raises ModelError where the result is not finite in the weight's own type."""
    weight = linear.weight
    wide = torch.promote_types(weight.dtype, torch.float32)
    result = (weight.to(wide) + change.to(weight.device, wide)).to(weight.dtype)
    if not bool(result.isfinite().all()):
        raise ModelError(f"The change of {linear.parameter_name} is not finite in {weight.dtype}.")
    weight.copy_(result)
