"""What the checks of an adapter share: small models of both kinds of linear layer, and adapters that have learnt something."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.adapters.attached import own_layers, parameters
from instar.checks.subject import Subject
from instar.errors import ContractError
from instar.interfaces import Adapter

WIDTH, INSIDE = 24, 16
PARTS = ("query", "norm", "value")
"""What is adapted, where the adapter takes it; `head` never is."""


class Toy(nn.Module):
    """Two linear layers, a norm between them, and a head. x [B, T, 24] -> [B, T, 3]."""

    def __init__(self, conv: bool, bias: bool = True) -> None:
        super().__init__()
        self.query = nn.Linear(WIDTH, INSIDE, bias=bias)
        self.norm = nn.LayerNorm(INSIDE)
        self.value = _conv() if conv else nn.Linear(INSIDE, WIDTH, bias=bias)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.value(F.gelu(self.norm(self.query(x)))))
        return y


def _conv() -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    found: nn.Module = Conv1D(WIDTH, INSIDE)
    return found


@dataclass(frozen=True)
class World:
    """A subject on one kind of model."""

    subject: Subject
    conv: bool

    def __str__(self) -> str:
        return "transformers Conv1D" if self.conv else "nn.Linear"

    def model(self, dtype: torch.dtype = torch.float32, bias: bool = True) -> Toy:
        """The base: the same bits at every call, in eval mode."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.subject.seed)
            made = Toy(self.conv, bias)
            for parameter in made.parameters():  # Conv1D starts with biases of 0, which hide mistakes
                parameter.data.add_(0.1 * torch.randn_like(parameter))
        return made.to(dtype).eval()

    def adapter(self, **knobs: Any) -> Adapter:
        """The method, as its constructor makes it."""
        made = self.subject.cls(**{**self.subject.arguments, **knobs})
        if not isinstance(made, Adapter):
            raise ContractError(f"{self.subject.cls.__name__} is no instar.interfaces.Adapter: derive the class from it.")
        return made

    def where(self) -> list[str]:
        """The layers of the model that the adapter takes."""
        adapter, model = self.adapter(), self.model()
        return [name for name in PARTS if adapter.takes(model.get_submodule(name))]

    def attach(self, model: nn.Module, name: str = "default") -> Any:
        """Attach a fresh adapter; the same bits for one name at every call. The receipt."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.subject.seed + len(name))
            return self.adapter().attach(model, self.where(), name=name)

    def learn(self, model: nn.Module, name: str = "default", size: float = 0.05) -> None:
        """Move every trained number, as training would."""
        draw = torch.Generator().manual_seed(self.subject.seed + 7)
        with torch.no_grad():
            for parameter in parameters(model, name):
                parameter.add_(size * torch.randn(parameter.shape, generator=draw).to(parameter))

    def learnt(self, dtype: torch.dtype = torch.float32) -> Toy:
        """A model with an adapter that has learnt something."""
        model = self.model(dtype)
        self.attach(model)
        self.learn(model)
        return model

    def x(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Inputs [2, 5, 24]."""
        draw = torch.Generator().manual_seed(self.subject.seed + 3)
        return torch.randn(2, 5, WIDTH, generator=draw).to(dtype)


def worlds(subject: Subject) -> Iterator[World]:
    """Both kinds; Conv1D only where `transformers` is installed."""
    yield World(subject, False)
    if importlib.util.find_spec("transformers") is not None:
        yield World(subject, True)


def trained_bytes(model: nn.Module, name: str = "default") -> dict[str, int]:
    """Path -> bytes that an adapter trains in each layer, float32."""
    return {
        path: sum(4 * p.numel() for p in layer.adapters[name].parameters()) for path, layer in own_layers(model, name).items()
    }


def output(model: nn.Module, x: Tensor) -> Tensor:
    """What the model computes, without gradients."""
    with torch.no_grad():
        found: Tensor = model(x)
        return found
