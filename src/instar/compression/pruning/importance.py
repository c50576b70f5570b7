"""How much the loss depends on each head and each group of neurons, by one pass of gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from instar.compression.pruning.layout import Layout
from instar.compression.pruning.removed import Element, Kind
from instar.compression.pruning.scoring import Validation, evaluating


def importance(model: nn.Module, parts: Layout, data: Validation) -> dict[Element, float]:
    """I_e = mean over samples of |∂ℓ(x) / ∂ξ_e|, where ξ_e = 1 multiplies what the element puts out.

    The factors are apart for each sample, so that one backward pass gives all of a batch.
    """
    assert data.loss is not None
    total: dict[Element, float] = {}
    samples = 0
    for batch in data.batches:
        factors: dict[tuple[Kind, int], Tensor] = {}
        rows = next(len(value) for value in batch.values() if isinstance(value, Tensor))
        handles = []
        for layer, block in enumerate(parts.parts.blocks):
            wanted: list[tuple[Kind, int, int, nn.Module]] = [
                ("heads", parts.heads[layer], parts.width(layer), block.attention_out.module),
                ("groups", parts.groups[layer], parts.group_size, block.ffn_out.module),
            ]
            for kind, count, width, module in wanted:
                if count:
                    factors[kind, layer] = torch.ones(rows, count, requires_grad=True, device=block.ffn_out.parameter.device)
                    handles.append(module.register_forward_pre_hook(_scaled(factors[kind, layer], width)))
        try:
            with evaluating(model), torch.enable_grad():
                losses = data.loss(model, batch)
                found = torch.autograd.grad(losses.sum(), list(factors.values()))
        finally:
            for handle in handles:
                handle.remove()
        samples += rows
        for (kind, layer), gradient in zip(factors, found, strict=True):
            for index, value in enumerate(gradient.abs().double().sum(0).tolist()):
                element = Element(kind, layer, index)
                total[element] = total.get(element, 0.0) + value
    return {element: value / samples for element, value in total.items()}


def _scaled(factor: Tensor, width: int) -> Any:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = inputs[0]
        spread = factor.repeat_interleave(width, 1)[:, : x.shape[-1]].to(x.dtype)
        rows = x.view(len(factor), -1, x.shape[-1])
        return ((rows * spread[:, None]).view(x.shape), *inputs[1:])

    return hook
