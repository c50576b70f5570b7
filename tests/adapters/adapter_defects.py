"""A small correct adapter, and one planted defect after another. What each must be caught by: `test_adapter_defects.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from instar.adapters.layer import LinearLayer
from instar.cards import Card, Cost
from instar.checks import Subject
from instar.interfaces import Adapter


class Scale(Adapter):
    """y = (s ⊙ W) x + b, s = 1 at birth: one number an output."""

    part: type[LinearLayer]

    def __init__(self, *, start: float = 1.0, lr: float = 1e-2) -> None:
        self.start, self.lr = start, lr

    def layer(self, base: nn.Module, name: str) -> LinearLayer:
        return self.part(base, start=self.start)  # type: ignore[call-arg]


class ScaleLayer(LinearLayer):
    def __init__(self, base: nn.Module, start: float = 1.0) -> None:
        super().__init__(base)
        self.scale = self.tensor(self.outputs, value=start)

    def weights(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight * self.scale[:, None], bias


Scale.part = ScaleLayer


class Forgets(Scale):
    """An argument that is not kept."""

    def __init__(self, *, start: float = 1.0, lr: float = 1e-2) -> None:
        super().__init__(start=1.0, lr=lr)
        self.start = start + 1

    def layer(self, base: nn.Module, name: str) -> LinearLayer:
        return ScaleLayer(base)


class Born(Scale):
    """Something else than the base from the start."""

    def __init__(self, *, start: float = 1.01, lr: float = 1e-2) -> None:
        super().__init__(start=start, lr=lr)


class WritesBase(Scale):
    """Its forward pass writes the base, in training."""

    class part(ScaleLayer):  # noqa: N801
        def forward(self, base: nn.Module, x: Tensor) -> Tensor:
            if self.training:
                base.weight.data.mul_(1.001)
            return super().forward(base, x)


class Idle(Scale):
    """A trainable tensor that reaches nothing."""

    class part(ScaleLayer):  # noqa: N801
        def __init__(self, base: nn.Module, start: float = 1.0) -> None:
            super().__init__(base, start)
            self.more = self.tensor(3)


class Doubles(Scale):
    """A gradient of twice the size."""

    class part(ScaleLayer):  # noqa: N801
        def weights(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
            return weight * (2 * self.scale - self.scale.detach())[:, None], bias


class MergesOther(Scale):
    """Merges something else than it computes."""

    class part(ScaleLayer):  # noqa: N801
        def merged(self, base: nn.Module) -> dict[str, Tensor]:
            return {name: value * 1.001 for name, value in super().merged(base).items()}


class Transposed(Scale):
    """Forgets which way Conv1D stores its weight."""

    class part(ScaleLayer):  # noqa: N801
        def merged(self, base: nn.Module) -> dict[str, Tensor]:
            return {"weight": base.weight * self.scale[: base.weight.shape[0], None]}


class Outside(Scale):
    """Keeps a number of its own in a plain attribute that no file sees."""

    made = 0

    class part(ScaleLayer):  # noqa: N801
        def __init__(self, base: nn.Module, start: float = 1.0) -> None:
            super().__init__(base, start)
            Outside.made += 1
            self.own = 1e-3 * Outside.made

        def forward(self, base: nn.Module, x: Tensor) -> Tensor:
            return super().forward(base, x) + self.own


class Shared(Scale):
    """Two adapters of one layer share what they learn."""

    class part(ScaleLayer):  # noqa: N801
        def __init__(self, base: nn.Module, start: float = 1.0) -> None:
            super().__init__(base, start)
            if not hasattr(base, "kept_scale"):
                object.__setattr__(base, "kept_scale", self.scale)
            self.scale = base.kept_scale


class Overflows(Scale):
    """Infinite on a base of bfloat16."""

    class part(ScaleLayer):  # noqa: N801
        def forward(self, base: nn.Module, x: Tensor) -> Tensor:
            return super().forward(base, x) * (torch.inf if x.dtype == torch.bfloat16 else 1)


def subject(cls: Any, *tags: str, state: str = "4 * O", flops: str = "I * O") -> Subject:
    """The class under a card of this test's making."""
    card = Card(
        slug=cls.__name__.lower(),
        family="adapters",
        title=cls.__name__,
        idea=cls.__name__,
        when_not="",
        kind="system",
        domains=[],
        tasks=[],
        path=Path(__file__),
        interface="Adapter",
        tags=list(tags or ("exact_at_birth",)),
        cost=Cost(flops=flops, state=state),
    )
    return Subject(cls, card)
