"""A small correct mixer, and one planted defect after another. What each must be caught by stands in `test_defects.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.cards import Card, Cost, Knob
from instar.checks import Subject
from instar.interfaces import Mixer
from instar.mixers.batch_norm import BatchNorm


class LeakyState(NamedTuple):
    memory: Tensor  # [B, D]


class Leaky(Mixer):
    """h_t = a h_{t-1} + W x_t, y_t = O h_t with one learnt decay a: correct, quadratic, and easy to spoil."""

    counts_pads = False
    reads_pads = False
    ignores_reset = False
    bounded = True

    def __init__(self, width: int, *, heads: int = 1) -> None:
        super().__init__()
        self.width, self.heads = width, heads
        self.rate = nn.Parameter(torch.zeros(()))
        self.enter, self.leave = nn.Linear(width, width), nn.Linear(width, width)

    def init_state(self, batch: int) -> LeakyState:
        return LeakyState(self.rate.new_zeros(batch, self.width))

    def forward(
        self, x: Tensor, state: LeakyState | None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, LeakyState]:
        B, T, _ = x.shape
        state = self.init_state(B) if state is None else state
        if T == 0:
            return x, state
        real = torch.ones(B, T, dtype=torch.bool) if mask is None else mask
        segment = torch.zeros(B, T, dtype=torch.int64) if reset is None or self.ignores_reset else reset.cumsum(1)
        x = x if self.reads_pads else x.masked_fill(~real.unsqueeze(-1), 0.0)
        u = self.enter(x) if self.reads_pads else self.enter(x) * real.unsqueeze(-1)
        count = (torch.ones_like(real) if self.counts_pads else real).cumsum(1)
        age = count.unsqueeze(2) - count.unsqueeze(1)
        log_a = -F.softplus(self.rate)
        weight = torch.exp((age.clamp(min=0) if self.bounded else age) * log_a)
        weight = (weight * (segment.unsqueeze(2) == segment.unsqueeze(1))).tril()
        old = torch.exp(count * log_a) * (segment == 0)
        h = weight.to(u.dtype) @ u + old.unsqueeze(-1) * state.memory.unsqueeze(1)
        return self.leave(h.to(u.dtype)).to(x.dtype), LeakyState(h[:, -1].to(state.memory.dtype))

    def reference(
        self, x: Tensor, state: LeakyState | None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, LeakyState]:
        h = (self.init_state(x.shape[0]) if state is None else state).memory
        y = [x[:, :0]]
        for t in range(x.shape[1]):
            if reset is not None:
                h = h.masked_fill(reset[:, t, None], 0.0)
            new = torch.exp(-F.softplus(self.rate)) * h + self.enter(x[:, t])
            h = new if mask is None else torch.where(mask[:, t, None], new, h)
            y.append(self.leave(h).unsqueeze(1))
        return torch.cat(y, dim=1), LeakyState(h)


class Spoilt(Leaky):
    """Base of defects that stand in both paths, so that it is not `reference` that tells."""

    def reference(self, x: Tensor, *args: Any, **flags: Any) -> tuple[Tensor, Any]:
        return self.forward(x, *args, **flags)


class LeaksFuture(Spoilt):
    def forward(self, x: Tensor, *args: Any, **flags: Any) -> tuple[Tensor, Any]:
        y, state = super().forward(x, *args, **flags)
        return y + 0.01 * torch.cat([x[:, 1:], torch.zeros_like(x[:, :1])], dim=1)[:, : x.shape[1]], state


class LeaksMean(Spoilt):
    def forward(self, x: Tensor, *args: Any, **flags: Any) -> tuple[Tensor, Any]:
        return super().forward(x - x.mean(dim=1, keepdim=True) if x.shape[1] else x, *args, **flags)


class IgnoresState(Spoilt):
    def forward(self, x: Tensor, state: Any = None, **flags: Any) -> tuple[Tensor, Any]:
        return super().forward(x, None, **flags)


class MixesNothing(Spoilt):
    def forward(self, x: Tensor, state: Any = None, **flags: Any) -> tuple[Tensor, Any]:
        return self.leave(x), self.init_state(x.shape[0]) if state is None else state


class PadsReachOutputs(Spoilt):
    reads_pads = True


class PadsDecayState(Spoilt):
    counts_pads = True


class ViewsChunks(Spoilt):
    """Chunks of 64 tokens by a view, of what padding has copied; whole chunks are not padded."""

    def forward(self, x: Tensor, *args: Any, **flags: Any) -> tuple[Tensor, Any]:
        B, T, D = x.shape
        n = -(-T // 64)
        chunks = F.pad(x, (0, 0, 0, 64 * n - T)).view(B * n, 64, D)
        return super().forward(chunks.view(B, 64 * n, D)[:, :T], *args, **flags)


class IgnoresReset(Spoilt):
    ignores_reset = True


class ForgetsHistory(Spoilt):
    """A convolution over two tokens whose last input is not kept in the state."""

    def forward(self, x: Tensor, *args: Any, **flags: Any) -> tuple[Tensor, Any]:
        y, state = super().forward(x, *args, **flags)
        return y + 0.1 * torch.cat([torch.zeros_like(y[:, :1]), y[:, :-1]], dim=1)[:, : x.shape[1]], state


class MutatesState(Spoilt):
    def forward(self, x: Tensor, state: Any = None, **flags: Any) -> tuple[Tensor, Any]:
        y, after = super().forward(x, state, **flags)
        if state is not None and not torch.is_grad_enabled():
            state.memory.copy_(after.memory)
            return y, state
        return y, after


class AppendsBlindly(Mixer):
    """A cache written behind the columns of whichever handle comes: two continuations overwrite each other."""

    def __init__(self, width: int, *, heads: int = 1) -> None:
        super().__init__()
        self.width, self.heads = width, heads
        self.enter = nn.Linear(width, width)

    def init_state(self, batch: int) -> Any:
        return self.enter.weight.new_zeros(batch, 64, self.width), torch.zeros(batch, dtype=torch.int64)

    def forward(self, x: Tensor, state: Any = None, *, mask: Any = None, reset: Any = None) -> tuple[Tensor, Any]:
        buffer, length = self.init_state(x.shape[0]) if state is None else state
        begin, end = int(length[0]), int(length[0]) + x.shape[1]
        if torch.is_grad_enabled():
            buffer = buffer.clone()
        buffer[:, begin:end] = self.enter(x)
        return buffer[:, :end].cumsum(1)[:, begin:], (buffer, length + x.shape[1])

    def reference(self, x: Tensor, *args: Any, **flags: Any) -> tuple[Tensor, Any]:
        return self.forward(x, *args, **flags)


class BatchLast(Spoilt):
    """A state that is not batch first."""

    def init_state(self, batch: int) -> Any:
        return (self.rate.new_zeros(self.width, batch),)

    def forward(self, x: Tensor, state: Any = None, **flags: Any) -> tuple[Tensor, Any]:
        memory = self.rate.new_zeros(x.shape[0], self.width) if state is None else state[0].mT
        y, after = super().forward(x, LeakyState(memory), **flags)
        return y, (after.memory.mT,)


class CouplesRows(Spoilt):
    def forward(self, x: Tensor, *args: Any, **flags: Any) -> tuple[Tensor, Any]:
        y, state = super().forward(x, *args, **flags)
        return y - 0.1 * y.mean(dim=0, keepdim=True), state


class Noisy(Spoilt):
    def forward(self, x: Tensor, *args: Any, **flags: Any) -> tuple[Tensor, Any]:
        y, state = super().forward(x, *args, **flags)
        return y + 1e-12 * torch.randn_like(y), state


class CutsGradient(Spoilt):
    def forward(self, x: Tensor, state: Any = None, **flags: Any) -> tuple[Tensor, Any]:
        return super().forward(x, None if state is None else LeakyState(state.memory.detach()), **flags)


class FastPathCutsGradient(Leaky):
    def forward(self, x: Tensor, *args: Any, **flags: Any) -> tuple[Tensor, Any]:
        y, state = super().forward(x, *args, **flags)
        return y.detach() + 0.5 * (y - y.detach()), state


class ReferenceDiffers(Leaky):
    def reference(self, x: Tensor, *args: Any, **flags: Any) -> tuple[Tensor, Any]:
        y, state = super().reference(x, *args, **flags)
        return 1.01 * y, state


class ReadsValues(Spoilt):
    """Python decides on a tensor's value: a graph break."""

    def forward(self, x: Tensor, *args: Any, **flags: Any) -> tuple[Tensor, Any]:
        if bool(x.isnan().any()):
            raise ValueError("NaN")
        return super().forward(x, *args, **flags)


class Unbounded(Spoilt):
    """exp of a growing number, hidden by a product with zero."""

    bounded = False


class LosesDigits(Spoilt):
    def forward(self, x: Tensor, *args: Any, **flags: Any) -> tuple[Tensor, Any]:
        y, state = super().forward(x, *args, **flags)
        return (y + 3e5) - 3e5, state


class ComputesInFloat32(Spoilt):
    def forward(self, x: Tensor, *args: Any, **flags: Any) -> tuple[Tensor, Any]:
        y, state = super().forward(x.float().to(x.dtype), *args, **flags)
        return y.float().to(x.dtype), state


class BreaksAutocast(Spoilt):
    def forward(self, x: Tensor, *args: Any, **flags: Any) -> tuple[Tensor, Any]:
        y, state = super().forward(x, *args, **flags)
        out = torch.zeros_like(x)
        out[:, torch.arange(x.shape[1])] = self.enter(y)
        return out, state


class LosesBuffer(Spoilt):
    """Random features that no checkpoint keeps."""

    features: Tensor

    def __init__(self, width: int, *, heads: int = 1) -> None:
        super().__init__(width, heads=heads)
        self.register_buffer("features", torch.randn(width), persistent=False)

    def forward(self, x: Tensor, *args: Any, **flags: Any) -> tuple[Tensor, Any]:
        return super().forward(x * self.features, *args, **flags)


class AnotherInference(Spoilt):
    def forward(self, x: Tensor, *args: Any, **flags: Any) -> tuple[Tensor, Any]:
        y, state = super().forward(x, *args, **flags)
        return y if torch.is_grad_enabled() else y.to(torch.bfloat16).to(y.dtype), state


class AnotherEval(Spoilt):
    def forward(self, x: Tensor, *args: Any, **flags: Any) -> tuple[Tensor, Any]:
        y, state = super().forward(x, *args, **flags)
        return y if self.training else 1.01 * y, state


class Seeds(Spoilt):
    """Repeatable, at the cost of everybody else's random numbers."""

    def forward(self, x: Tensor, *args: Any, **flags: Any) -> tuple[Tensor, Any]:
        torch.manual_seed(0)
        return super().forward(x, *args, **flags)


class WidensHalf(Spoilt):
    """In half precision the output is float32, which the next layer of a cast model does not take."""

    def forward(self, x: Tensor, *args: Any, **flags: Any) -> tuple[Tensor, Any]:
        y, state = super().forward(x, *args, **flags)
        return y.to(torch.promote_types(y.dtype, torch.float32)), state


class CountsInHalf(Spoilt):
    """A sum over tokens that loses its small terms in bfloat16."""

    def forward(self, x: Tensor, *args: Any, **flags: Any) -> tuple[Tensor, Any]:
        y, state = super().forward(x, *args, **flags)
        return (y + 300.0) - 300.0, state


class ChangesMask(Spoilt):
    """Real tokens at the edge are taken for granted, in the caller's own tensor."""

    def forward(self, x: Tensor, state: Any = None, *, mask: Any = None, reset: Any = None) -> tuple[Tensor, Any]:
        y, after = super().forward(x, state, mask=mask, reset=reset)
        if mask is not None:
            mask.fill_(True)
        return y, after


class Returns(Spoilt):
    """The output alone, as many layers return it."""

    def forward(self, x: Tensor, *args: Any, **flags: Any) -> Any:
        return super().forward(x, *args, **flags)[0]


class Crashes(Leaky):
    def forward(self, x: Tensor, *args: Any, **flags: Any) -> tuple[Tensor, Any]:
        raise RuntimeError("out of order")


class NormalisesByBatch(Leaky):
    """Correct in eval mode; in training its outputs depend on the whole batch, as batch norm does."""

    def __init__(self, width: int, *, heads: int = 1) -> None:
        super().__init__(width, heads=heads)
        self.norm = BatchNorm(width)

    def forward(self, x: Tensor, *args: Any, mask: Tensor | None = None, **flags: Any) -> tuple[Tensor, Any]:
        y, state = super().forward(x, *args, mask=mask, **flags)
        return self.norm(y, mask).to(x.dtype), state

    def reference(self, x: Tensor, *args: Any, mask: Tensor | None = None, **flags: Any) -> tuple[Tensor, Any]:
        y, state = super().reference(x, *args, mask=mask, **flags)
        return self.norm(y, mask).to(x.dtype), state


class Dropout(Leaky):
    """Correct under the tag `stochastic`."""

    def forward(self, x: Tensor, *args: Any, **flags: Any) -> tuple[Tensor, Any]:
        y, state = super().forward(x, *args, **flags)
        return y * (torch.rand_like(y) > 0.1) if self.training else y, state


def subject(cls: type[Mixer], *tags: str, state: str = "4 * D", knobs: dict[str, Knob] | None = None) -> Subject:
    """The class under a card of this test's making."""
    card = Card(
        slug=cls.__name__.lower(),
        family="mixers",
        title=cls.__name__,
        idea=cls.__name__,
        when_not="",
        kind="system",
        domains=[],
        tasks=[],
        path=Path(__file__),
        interface="Mixer",
        tags=list(tags or ("causal", "streaming")),
        cost=Cost(flops="T * D", state=state),
        knobs=knobs or {},
    )
    return Subject(cls, card, width=8)
