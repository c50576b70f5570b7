"""Layers that are preconditioned, whichever way they store their weight, and the statistics that their passes leave behind.

A sample of the inputs is [x, 1] with a bias, one of the outputs N · ∂L/∂y for N samples, which undoes the 1/N of a mean loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from instar.anatomy.linear import is_linear


@dataclass
class Sum:
    """Statistics added up, and how many."""

    total: Tensor | None = None
    count: int = 0

    def add(self, found: Tensor) -> None:
        self.total = found if self.total is None else self.total + found
        self.count += 1

    def mean(self) -> Tensor | None:
        return None if self.total is None else self.total / self.count

    def clear(self) -> None:
        self.total, self.count = None, 0


@dataclass
class Layer:
    """One layer of the model. Several calls before a step (accumulation, a module used twice) are averaged."""

    name: str
    module: nn.Module
    inputs: Sum = field(default_factory=Sum)
    outputs: Sum = field(default_factory=Sum)
    hook: RemovableHandle | None = None
    biased: bool = field(init=False)
    """Whether there is a bias that is trained; decided once, since the sides of the factors follow from it."""

    def __post_init__(self) -> None:
        bias = getattr(self.module, "bias", None)
        self.biased = isinstance(bias, nn.Parameter) and bias.requires_grad

    @property
    def weight(self) -> nn.Parameter:
        found = self.module.weight
        assert isinstance(found, nn.Parameter)
        return found

    @property
    def bias(self) -> nn.Parameter | None:
        if not self.biased:
            return None
        found = self.module.bias
        assert isinstance(found, nn.Parameter)
        return found

    @property
    def transposed(self) -> bool:
        """Whether the weight is stored [in, out], as of `transformers` Conv1D."""
        return not isinstance(self.module, (nn.Linear, nn.Conv2d))

    @property
    def sizes(self) -> tuple[int, int]:
        """(outputs, inputs with the constant of a bias): the sides of the two factors."""
        rows, columns = self.matrix(self.weight).shape
        return rows, columns + self.biased

    def matrix(self, of: Tensor) -> Tensor:
        """A weight or its gradient as [out, in]."""
        return of.T if self.transposed else of.flatten(1)

    def gradient(self) -> Tensor | None:
        """G [out, in (+1)], the bias as its last column, float32; None without a gradient."""
        if self.weight.grad is None:
            return None
        found = self.matrix(self.weight.grad).float()
        if self.bias is None or self.bias.grad is None:
            return found
        return torch.cat([found, self.bias.grad.float().unsqueeze(1)], 1)

    def put(self, gradient: Tensor) -> None:
        """Write G back."""
        weight, bias = self.weight, self.bias
        assert weight.grad is not None
        columns = self.matrix(weight).shape[1]
        made = self.matrix(gradient[:, :columns]) if self.transposed else gradient[:, :columns]
        # Into the gradient itself: as a matrix, one in channels_last is a copy.
        weight.grad.copy_(made.reshape(weight.grad.shape))
        if bias is not None and bias.grad is not None:
            bias.grad.copy_(gradient[:, columns])

    def watch(
        self, due: Callable[[], bool], scale: Callable[[], float], clip: float, summary: Callable[[Tensor], Tensor]
    ) -> None:
        """Keep `summary` of the samples [N, in (+1)] and [N, out] of every backward pass whose forward pass was made while `due`.

        scale: what makes a gradient that of a mean loss, asked at each backward pass. clip: bound of each entry of a sample.
        """

        def seen(module: nn.Module, args: Any, named: dict[str, Any], output: Any) -> None:
            if module is not self.module:
                return  # a copy of the model, which took the hook along
            if not (due() and isinstance(output, Tensor) and output.requires_grad):
                return  # no gradient will come: eval, or the first pass of a checkpoint
            x = (*args, *named.values())[0]
            with torch.no_grad(), self.full_precision():
                rows = self._inputs(x.detach()).clamp(-clip, clip)
                inputs = summary(F.pad(rows, (0, 1), value=1.0) if self.biased else rows)

            def told(g: Tensor) -> None:
                # Both here, so that what is forgotten between a forward pass and its backward pass is neither of them.
                self.inputs.add(inputs)
                with self.full_precision():
                    self.outputs.add(summary(self._outputs(g, scale()).clamp(-clip, clip)))

            output.register_hook(told)

        self.hook = self.module.register_forward_hook(seen, with_kwargs=True)

    def full_precision(self) -> torch.autocast:
        """Without autocast, whose products of statistics would be no covariances, and those of factors no inverses."""
        return torch.autocast(self.weight.device.type, enabled=False)

    def forget(self) -> None:
        """Statistics of the step that was made, or that is not to be made."""
        self.inputs.clear()
        self.outputs.clear()

    def release(self) -> None:
        if self.hook is not None:
            self.hook.remove()
            self.hook = None
        self.forget()

    def _inputs(self, x: Tensor) -> Tensor:
        """Samples [N, in]; positions of a sequence are samples, those of an image are averaged."""
        module = self.module
        if not isinstance(module, nn.Conv2d):
            return x.reshape(-1, x.shape[-1]).float()
        assert not isinstance(module.padding, str)
        patches = F.unfold(x.float(), module.kernel_size, module.dilation, module.padding, module.stride)
        return patches.mean(-1)

    @torch.no_grad()
    def _outputs(self, g: Tensor, scale: float) -> Tensor:
        """Samples [N, out] of N · ∂L/∂y."""
        rows = g.float().mean((2, 3)) if isinstance(self.module, nn.Conv2d) else g.reshape(-1, g.shape[-1]).float()
        return rows * (scale * len(rows))


def averaged(layers: Sequence[Layer], axes: int, group: Any) -> list[tuple[Layer, Tensor, Tensor]]:
    """Layers that were used since the last step, here or in another process of the group, with their statistics' means.

    axes: of a statistic, 1 or 2, each as long as the side of its factor. One call sends all of them and who has any: every
    process has to send as much, and a layer that it did not use is zeros. (The average that only NCCL has is a sum, divided.)
    """
    found = [(layer, layer.inputs.mean(), layer.outputs.mean()) for layer in layers]
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size(group) == 1 or not found:
        return [(layer, a, g) for layer, a, g in found if a is not None and g is not None]
    device, shapes, parts = layers[0].weight.device, [], []
    for layer, a, g in found:
        shapes += [(side,) * axes for side in reversed(layer.sizes)]
        for kept, shape in zip((a, g), shapes[-2:], strict=True):
            parts.append(torch.zeros(shape, device=device) if kept is None or a is None or g is None else kept)
    counts = torch.tensor([float(a is not None and g is not None) for _, a, g in found], device=device)
    flat = torch.cat([*(part.flatten() for part in parts), counts])
    dist.all_reduce(flat, group=group)
    sums = flat[: -len(found)].split([math.prod(shape) for shape in shapes])
    means: list[tuple[Layer, Tensor, Tensor]] = []
    for number, (layer, count) in enumerate(zip(layers, flat[-len(found) :].tolist(), strict=True)):
        if count:
            a, g = (sums[2 * number + i].view(shapes[2 * number + i]) / count for i in (0, 1))
            means.append((layer, a, g))
    return means


def skipping(skip: Sequence[str] | Callable[[str, nn.Module], bool]) -> Callable[[str, nn.Module], bool]:
    """Names, or a function of (name, module), as the latter."""
    return skip if callable(skip) else lambda name, _: name in skip


def preconditionable(
    model: nn.Module, *, skip: Callable[[str, nn.Module], bool], widest: int
) -> tuple[list[Layer], dict[str, str]]:
    """The layers that get factors, and the reason for each other one that has a matrix."""
    uses = dict(_uses(model))
    chosen, out = [], {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, nn.Parameter) or weight.dim() < 2:
            continue
        reason = _reason(name, module, weight, uses, skip)
        layer = Layer(name, module)
        if not reason and max(layer.sizes) > widest:
            reason = f"a factor of {max(layer.sizes)} × {max(layer.sizes)} is wider than {widest}"
        if reason:
            out[name] = reason
        else:
            chosen.append(layer)
    return chosen, out


def _reason(
    name: str, module: nn.Module, weight: nn.Parameter, uses: dict[int, int], skip: Callable[[str, nn.Module], bool]
) -> str:
    if isinstance(module, nn.Conv2d):
        if module.groups != 1 or module.padding_mode != "zeros" or isinstance(module.padding, str):
            return "a convolution with groups, or padding that is not a number of zeros"
    elif isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.sparse:
        return "its gradient is sparse, and steps with such a gradient are skipped: make it with sparse=False"
    elif not is_linear(module):
        return f"neither linear nor a convolution: {type(module).__name__}"
    if not weight.requires_grad:
        return "frozen"
    if uses[id(weight)] > 1:
        return "its weight is shared with another module"
    return "left out by the caller" if skip(name, module) else ""


def _uses(model: nn.Module) -> Iterator[tuple[int, int]]:
    counts: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            counts[id(parameter)] = counts.get(id(parameter), 0) + 1
    yield from counts.items()
