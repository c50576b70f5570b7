"""A small correct head, and one planted defect after another. What each must be caught by stands in `test_head_defects.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from instar.cards import Card, Cost, Knob
from instar.checks import Subject
from instar.compat import fitting
from instar.errors import ShapeError
from instar.interfaces import CompatibleHead, Pairs


class Beside(CompatibleHead):
    """full(x) = (W x̂ / ‖W x̂‖, share · x̂) with W by least squares: nested, of one length, and easy to spoil."""

    nested = True
    closed_form = True
    weight: Tensor

    def __init__(self, new_dim: int, old_dim: int, *, input_dim: int | None = None, share: float = 1.0) -> None:
        super().__init__()
        if new_dim < 1 or old_dim < 1:
            raise ShapeError("Widths of 1 or more.")
        self.new_dim, self.old_dim, self.input_dim, self.full_dim = new_dim, old_dim, new_dim, old_dim + new_dim
        self.share = share
        self.register_buffer("weight", torch.eye(old_dim, new_dim))

    def fit(self, pairs: Pairs, *, steps: int | None = None, seed: int = 0, monitor: Any = None) -> None:
        fitting.check(self, pairs)
        self.weight.copy_((torch.linalg.pinv(pairs.new.double()) @ pairs.old.double()).T)

    def compatible(self, x: Tensor) -> Tensor:
        return F.normalize(F.normalize(x, dim=1) @ self.weight.T, dim=1)

    def full(self, x: Tensor) -> Tensor:
        return torch.cat([self.compatible(x), self.share * F.normalize(x, dim=1)], 1)

    def lower(self, full: Tensor, generation: int) -> Tensor:
        if not 0 <= generation <= self.newest:
            raise ShapeError(f"Generations 0 to {self.newest}.")
        if generation == self.newest:
            return full
        found = full[:, : self.old_dim]
        return found if generation == self.newest - 1 or self.previous is None else self.previous.lower(found, generation)

    def bases(self) -> list[Tensor]:
        return [self.weight]


class Forgets(Beside):
    """An argument that is not kept."""

    def __init__(self, new_dim: int, old_dim: int, *, input_dim: int | None = None, share: float = 1.0) -> None:
        super().__init__(new_dim, old_dim, share=share)
        self.share = share + 1


class TooWide(Beside):
    nested = False

    def compatible(self, x: Tensor) -> Tensor:
        return F.pad(super().compatible(x), (0, 1))


class Longer(Beside):
    """Full vectors of many lengths."""

    def full(self, x: Tensor) -> Tensor:
        return super().full(x) * x[:, :1].abs().clamp(0.5, 2)

    def compatible(self, x: Tensor) -> Tensor:
        return super().compatible(x) * x[:, :1].abs().clamp(0.5, 2)


class Single(Beside):
    """Float64 in, float32 out."""

    def compatible(self, x: Tensor) -> Tensor:
        return super().compatible(x).double()


class TakesAnything(Beside):
    def fit(self, pairs: Pairs, **ignored: Any) -> None:
        self.weight.copy_((torch.linalg.pinv(pairs.new.double().nan_to_num()) @ pairs.old.double()).T)


class HalfDone(Beside):
    """Changes first and looks afterwards."""

    def fit(self, pairs: Pairs, **flags: Any) -> None:
        self.weight.zero_()
        super().fit(pairs, **flags)


class TakesFew(Beside):
    """Looks at the widths only."""

    def fit(self, pairs: Pairs, **flags: Any) -> None:
        twice = Pairs(*(part if part is None or len(part) > 1 else torch.cat([part, part]) for part in (pairs.old, pairs.new)))
        super().fit(twice, **flags)


class DrawsGlobally(Beside):
    def fit(self, pairs: Pairs, **flags: Any) -> None:
        super().fit(pairs, **flags)
        self.weight.add_(1e-3 * torch.randn_like(self.weight))


class Remembers(Beside):
    """Starts where an earlier fit ended."""

    def fit(self, pairs: Pairs, **flags: Any) -> None:
        before = self.weight.clone()
        super().fit(pairs, **flags)
        self.weight.add_(1e-3 * before)


class ChangesPairs(Beside):
    def fit(self, pairs: Pairs, **flags: Any) -> None:
        super().fit(pairs, **flags)
        pairs.new.neg_()


class Blurs(Beside):
    """Learns the direction, not the place."""

    def compatible(self, x: Tensor) -> Tensor:
        return F.normalize(super().compatible(x).sign(), dim=1)


class Untold(Beside):
    """Says that it trains, and tells nobody."""

    closed_form = False


class InPlace(Beside):
    """Training works on the head itself, so that an interrupt leaves it between two states."""

    closed_form = False

    def fit(self, pairs: Pairs, *, steps: int | None = None, seed: int = 0, monitor: Any = None) -> None:
        fitting.check(self, pairs)
        self.weight.zero_()
        for step in range(12 if steps is None else steps):
            if monitor is not None and monitor(step + 1, 1.0):
                break
        super().fit(pairs)


class Overflows(Beside):
    def compatible(self, x: Tensor) -> Tensor:
        return super().compatible(x * (x**4).mean(1, keepdim=True))


class Couples(Beside):
    def compatible(self, x: Tensor) -> Tensor:
        return super().compatible(x - x.mean(0) if len(x) > 1 else x)


class LosesBuffer(Beside):
    turn: Tensor

    def __init__(self, new_dim: int, old_dim: int, *, input_dim: int | None = None, share: float = 1.0) -> None:
        super().__init__(new_dim, old_dim, share=share)
        self.register_buffer("turn", torch.ones(new_dim), persistent=False)

    def compatible(self, x: Tensor) -> Tensor:
        return super().compatible(x * self.turn)


class KeepsOutside(Beside):
    """A plain attribute that no state_dict sees."""

    def __init__(self, new_dim: int, old_dim: int, *, input_dim: int | None = None, share: float = 1.0) -> None:
        super().__init__(new_dim, old_dim, share=share)
        self.sign = 1.0

    def fit(self, pairs: Pairs, **flags: Any) -> None:
        super().fit(pairs, **flags)
        self.sign = -1.0

    def compatible(self, x: Tensor) -> Tensor:
        return super().compatible(x) * self.sign


class NotPrefix(Beside):
    def full(self, x: Tensor) -> Tensor:
        return super().full(x).flip(1)

    def lower(self, full: Tensor, generation: int) -> Tensor:
        return super().lower(full if generation == self.newest else full.flip(1), generation)


class HidesPrevious(Beside):
    """An attribute of the class, which is found before the module that was assigned."""

    previous = None


class SpoilsPrevious(Beside):
    def fit(self, pairs: Pairs, **flags: Any) -> None:
        super().fit(pairs, **flags)
        if self.previous is not None:
            for value in self.previous.buffers():
                value.mul_(1.001)


class Crashes(Beside):
    def compatible(self, x: Tensor) -> Tensor:
        raise RuntimeError("out of order")


def subject(cls: type[CompatibleHead], *tags: str, flops: str = "2 * D * O", knobs: dict[str, Knob] | None = None) -> Subject:
    """The class under a card of this test's making."""
    card = Card(
        slug=cls.__name__.lower(),
        family="compat",
        title=cls.__name__,
        idea=cls.__name__,
        when_not="",
        kind="system",
        domains=[],
        tasks=[],
        path=Path(__file__),
        interface="CompatibleHead",
        tags=list(tags or ("rotation=exact",)),
        cost=Cost(flops=flops, state="4 * D * O"),
        knobs=knobs or {},
    )
    return Subject(cls, card)
