"""Linear layers, whichever way they store their weight."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Linear:
    """A layer y = W x + b, W [out, in], which `transformers` Conv1D (GPT-2) stores transposed."""

    name: str
    module: nn.Module

    @property
    def transposed(self) -> bool:
        """Whether the module stores [in, out]."""
        return not isinstance(self.module, nn.Linear)

    @property
    def parameter(self) -> nn.Parameter:
        """The weight as it is stored."""
        found = self.module.weight
        assert isinstance(found, nn.Parameter)
        return found

    @property
    def parameter_name(self) -> str:
        """Its name in the model."""
        return f"{self.name}.weight" if self.name else "weight"

    @property
    def weight(self) -> Tensor:
        """[out, in], a view of the parameter."""
        return self.parameter.T if self.transposed else self.parameter

    @property
    def bias(self) -> nn.Parameter | None:
        found = getattr(self.module, "bias", None)
        assert found is None or isinstance(found, nn.Parameter)
        return found

    @property
    def outputs(self) -> int:
        return self.weight.shape[0]

    @property
    def inputs(self) -> int:
        return self.weight.shape[1]


def is_linear(module: nn.Module) -> bool:
    """`torch.nn.Linear`, what derives from it, and `transformers` Conv1D, known by its name: it need not be installed."""
    return isinstance(module, nn.Linear) or (
        type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils"
    )


def linears(model: nn.Module) -> list[Linear]:
    """All linear layers of a model, in its own order."""
    return [Linear(name, module) for name, module in model.named_modules() if is_linear(module)]
