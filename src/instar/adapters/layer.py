"""What stands in a model where a layer is adapted: the layer as it was, and named changes of it, one of them active."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.anatomy import Linear


class AdapterLayer(nn.Module, abc.ABC):
    """What an adapter adds to one layer: trainable tensors, and the adapted layer as a function of them and of the base."""

    file_names: ClassVar[Mapping[str, str]] = {}
    """Own tensor -> its name in a saved adapter, where that is another (the layout of `peft`)."""

    @abc.abstractmethod
    def forward(self, base: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """What the adapted layer computes. The base is never written."""

    @abc.abstractmethod
    def merged(self, base: nn.Module) -> dict[str, Tensor]:
        """The tensors of the base, by name, with which it alone computes the same; those that differ. Kept in their type."""


class LinearLayer(AdapterLayer):
    """The change of a linear layer y = W x + b, whichever way it stores its weight.

    Args:
        base: `nn.Linear` or `transformers` Conv1D. dropout: on what the change reads, in training.

    Own tensors are float32 (float64 where the base is): near 1 a small update is lost in bfloat16.
    """

    def __init__(self, base: nn.Module, *, dropout: float = 0.0) -> None:
        super().__init__()
        layer = Linear("", base)
        self.inputs, self.outputs = layer.inputs, layer.outputs
        self.dropout = dropout
        self._dtype = torch.promote_types(layer.parameter.dtype, torch.float32)
        self._device = layer.parameter.device

    @abc.abstractmethod
    def weights(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """W [out, in] and b of the adapted layer, from those of the base."""

    def forward(self, base: nn.Module, x: Tensor) -> Tensor:
        layer = Linear("", base)
        weight, bias = self.weights(layer.weight, layer.bias)
        return F.linear(self.drop(x), weight.to(x.dtype), None if bias is None else bias.to(x.dtype))

    def merged(self, base: nn.Module) -> dict[str, Tensor]:
        layer = Linear("", base)
        weight, bias = self.weights(layer.weight, layer.bias)
        dtype = layer.parameter.dtype
        found = {"weight": (weight.T if layer.transposed else weight).to(dtype).contiguous()}
        return found if bias is None else {**found, "bias": bias.to(dtype)}

    def drop(self, x: Tensor) -> Tensor:
        """Dropout, in training."""
        return F.dropout(x, self.dropout) if self.dropout and self.training else x

    def tensor(self, *shape: int, value: float = 0.0) -> nn.Parameter:
        """A parameter of the type and place that suit the base."""
        return nn.Parameter(torch.full(shape, value, dtype=self._dtype, device=self._device))


class Adapted(nn.Module):
    """A layer with named adapters, of which one may be active. Without an active one it is the base layer.

    `weight` and `bias` are those that the layer has at the moment, so that code which reads them sees the adapter. Whatever else
    is asked of it, the base layer answers.
    """

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.adapters = nn.ModuleDict()
        self.active: str | None = None
        self.training = base_layer.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.active is None:
            return self.base_layer(*args, **kwargs)
        return self.adapters[self.active](self.base_layer, *args, **kwargs)

    @property
    def weight(self) -> Any:
        """As the layer stores it, with the active adapter in it."""
        return self._now("weight")

    @property
    def bias(self) -> Any:
        """The same of the bias."""
        return self._now("bias")

    def _now(self, name: str) -> Any:
        if self.active is not None:
            found = self.adapters[self.active].merged(self.base_layer)  # type: ignore[operator]
            if name in found:
                return found[name]
        return getattr(self.base_layer, name)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__") or "base_layer" not in self.__dict__.get("_modules", {}):
                raise
            return getattr(self.base_layer, name)

    def extra_repr(self) -> str:
        return f"active={self.active!r}"


class Merged(Adapted):
    """An adapted layer while adapters are merged into its base: it computes as the base does, which is another one now.

    Args:
        layer: the adapted layer, merged or not. before: the tensors of the base that the merge replaced. name: of the adapter.
    """

    def __init__(self, layer: Adapted, before: dict[str, Tensor | None], name: str) -> None:
        super().__init__(layer.base_layer)
        self.merged: tuple[str, ...] = (*getattr(layer, "merged", ()), name)
        self.adapters = layer.adapters
        self.kept: tuple[dict[str, Tensor | None], ...] = (*getattr(layer, "kept", ()), before)
        """What unmerging brings back, a dict a merge, the oldest first."""
        self.training = layer.training

    def unmerged(self) -> Adapted:
        """The layer as it was before the first merge, with nothing active."""
        made = Adapted(self.base_layer)
        made.adapters = self.adapters
        made.training = self.training
        return made

    def extra_repr(self) -> str:
        return f"merged={len(self.kept)}"
