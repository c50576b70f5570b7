"""Fine-tuning of one FFN matrix on facts: what the editors are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from instar.editing.above import Above
from instar.editing.layout import Layer, Layers, Layout, Parts
from instar.editing.located import Located
from instar.editing.rows import pack, row
from instar.editing.running import on_input, resting
from instar.editing.writing import add
from instar.errors import ModelError, ShapeError
from instar.interfaces import Fact, Monitor


class Tuning(Located):
    """W + Δ, where Δ minimises the NLL of the targets after the bare prompts by Adam from 0, all facts in each step."""

    lr: float
    steps: int
    enough: float
    texts = None
    bound: float | None = None
    """Of |Δ|, after each step."""

    def _set(self, layers: Layers, lr: float, steps: int, enough: float, parts: Parts | None) -> None:
        if not lr > 0 or steps < 1:
            raise ShapeError(f"Fine-tuning expects lr > 0 and steps ≥ 1; received {lr} and {steps}.")
        self.layers, self.lr, self.steps, self.enough, self.parts = layers, lr, steps, enough, parts

    def chosen(self, model: nn.Module, tokenizer: Any, where: Layout, facts: Sequence[Fact]) -> list[Layer]:
        return super().chosen(model, tokenizer, where, facts)[-1:]

    def carry_out(
        self,
        model: nn.Module,
        tokenizer: Any,
        where: Layout,
        chosen: Sequence[Layer],
        facts: Sequence[Fact],
        monitor: Monitor | None,
    ) -> None:
        layer = chosen[0].ffn
        rows = pack([row(tokenizer, f.prompt, f.subject, f.target) for f in facts], layer.parameter.device)
        with resting(model):
            add(layer, self._search(Above(model, where, rows, chosen[0].index), layer.module, layer.weight, monitor))

    def _search(self, above: Above, module: nn.Module, weight: Tensor, monitor: Monitor | None) -> Tensor:
        change = torch.zeros(weight.shape, device=weight.device, requires_grad=True)
        optimiser = torch.optim.Adam([change], lr=self.lr)
        real = above.rows.target >= 0
        read: list[Tensor] = []
        for step in range(self.steps):
            with torch.enable_grad(), on_input(module, read.append):
                logits, _ = above.run(
                    change={module: lambda value: value + (read.pop().to(change.dtype) @ change.T).to(value.dtype)}
                )
                logp = logits.float().log_softmax(-1).gather(-1, above.rows.target.clamp(min=0)[..., None])[..., 0]
                loss = -((logp * real).sum(1) / real.sum(1)).mean()
            said = float(loss.detach())
            if not said == said or said == float("inf"):
                raise ModelError(
                    f"The loss of the facts is {said}: the model's weights are not finite, or lr {self.lr} is too large."
                )
            if (monitor is not None and monitor(step + 1, said)) or said < self.enough:
                break
            (change.grad,) = torch.autograd.grad(loss, [change])
            optimiser.step()
            if self.bound is not None:
                change.data.clamp_(-self.bound, self.bound)
        return change.detach()
