"""The states that make a model say the facts: free vectors at the subject, found by gradient, of many facts in one batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from instar.editing.gelu import fused
from instar.editing.layout import Layer, Layout, Part
from instar.editing.rows import Row, pack, row
from instar.editing.running import resting
from instar.editing.shifted import Shifted
from instar.errors import ModelError, ShapeError
from instar.interfaces import Fact, Monitor

_BETAS, _EPSILON = (0.9, 0.999), 1e-8


@dataclass(frozen=True)
class Objective:
    """What the vectors minimise, for each fact: nll · NLL + kl · KL + decay · Σ_parts ‖δ‖ / ‖v₀‖², with ‖δ‖ ≤ clamp · ‖v₀‖.

    NLL is that of the target's tokens, mean over tokens and prompts; KL(before ‖ after) is of what follows the subject in
    "{subject} is a"; v₀ is the part's own output on the bare prompt.
    """

    parts: Sequence[Part]
    """What the vectors are added to."""
    lr: float
    steps: int
    clamp: float
    kl: float
    decay: float
    nll: float = 1.0
    enough: float = 0.05
    """A fact whose loss is below is done."""
    easing: bool = False
    """PMET's: once the target is the likeliest everywhere, NLL counts a tenth, and a KL of 0.01 is enough."""

    def __post_init__(self) -> None:
        if not (self.lr > 0 and self.steps >= 1 and self.clamp > 0 and min(self.kl, self.decay, self.nll) >= 0):
            raise ShapeError(
                f"Expected lr > 0, steps ≥ 1, clamp > 0, and kl, decay and nll of 0 or more; received {self.lr}, {self.steps}, "
                f"{self.clamp}, {self.kl}, {self.decay} and {self.nll}."
            )


@dataclass(frozen=True)
class Targets:
    """For each of N facts what was found."""

    before: Mapping[Part, Tensor]
    """v₀ [N, D]."""
    shift: Mapping[Part, Tensor]
    """δ [N, D]."""
    nll: Tensor
    """[N], of the target under the shift."""
    steps: Tensor
    """[N], steps taken."""


def find(
    model: nn.Module,
    layout: Layout,
    tokenizer: Any,
    facts: Sequence[Fact],
    prefixes: Sequence[str],
    layer: int,
    objective: Objective,
    *,
    batch: int = 32,
    monitor: Monitor | None = None,
) -> Targets:
    """δ of every fact at the subject's last token in `layer`; the model stays as it is.

    A fact's prompts are the bare one and one after each prefix. Facts are optimised `batch` at a time: their losses have nothing
    in common and Adam works on each number alone, so that the result is that of one at a time. A fact that is done leaves.
    monitor: called with (step, mean loss of the facts under way); True ends the search with what was found.

    O(facts · (1 + prefixes) · steps) passes through the layers above `layer`, from the subject on. Raises EditError, ModelError
    for a loss that is not finite.
    """
    made = [prompts(tokenizer, fact, prefixes) for fact in facts]
    kept = [row(tokenizer, f"{fact.subject} is a", fact.subject) for fact in facts]
    with resting(model), fused(model):
        batches = list(_alike(made, batch))
        found = [
            _Search(model, layout, [made[i] for i in some], [kept[i] for i in some], layout.layers[layer], objective).run(monitor)
            for some in batches
        ]
    back = torch.tensor([i for some in batches for i in some]).argsort()
    return Targets(
        {part: torch.cat([one.before[part] for one in found])[back] for part in objective.parts},
        {part: torch.cat([one.shift[part] for one in found])[back] for part in objective.parts},
        torch.cat([one.nll for one in found])[back],
        torch.cat([one.steps for one in found])[back],
    )


def prompts(tokenizer: Any, fact: Fact, prefixes: Sequence[str]) -> list[Row]:
    """The bare prompt of a fact and those after prefixes, each with the target."""
    return [row(tokenizer, fact.prompt, fact.subject, fact.target, prefix) for prefix in ("", *prefixes)]


def _alike(made: Sequence[Sequence[Row]], most: int) -> Iterator[list[int]]:
    """Numbers of facts in batches of `most` or fewer, whose rows are nearly as long as each other: what is padded is wasted.

    From the subject on first, and then up to it. A batch ends where a longer fact comes and it holds a quarter of `most`.
    """
    lengths = [(max(len(one.ids) - one.subject for one in rows), rows[0].subject) for rows in made]
    some: list[int] = []
    for i in sorted(range(len(made)), key=lengths.__getitem__):
        if len(some) == most or (4 * len(some) >= most and lengths[i][0] > lengths[some[-1]][0]):
            yield some
            some = []
        some.append(i)
    if some:
        yield some


class _Search:
    """One batch of facts: F of them, P prompts each, and one more for the KL."""

    def __init__(
        self,
        model: nn.Module,
        layout: Layout,
        made: Sequence[Sequence[Row]],
        kept: Sequence[Row],
        layer: Layer,
        objective: Objective,
    ) -> None:
        self.objective, self.facts, self.prompts = objective, len(made), len(made[0])
        self.device = next(model.parameters()).device
        self.said = Shifted(model, layout, pack([one for same in made for one in same], self.device), layer)
        self.after = Shifted(model, layout, pack(kept, self.device).to_subject(), layer)

    def run(self, monitor: Monitor | None) -> Targets:
        aim, device = self.objective, self.device
        with torch.no_grad():
            reference = self.after.run()[:, 0].float().log_softmax(-1)
            before = {part: value[:: self.prompts].float() for part, value in self.said.outputs(aim.parts).items()}
        lengths = {part: value.norm(dim=1) for part, value in before.items()}
        shift = {part: torch.zeros_like(value) for part, value in before.items()}
        adam = {part: _Adam(value, aim.lr) for part, value in shift.items()}
        nll_of, steps_of = torch.zeros(self.facts, device=device), torch.zeros(self.facts, dtype=torch.int64, device=device)
        active = torch.arange(self.facts, device=device)
        for step in range(aim.steps):
            delta = {part: shift[part][active].requires_grad_() for part in aim.parts}
            with torch.enable_grad():
                nll, right = self._nll(delta)
                after = self.after.run(delta)[:, 0].float().log_softmax(-1)
                kl = (reference.exp() * (reference - after)).sum(-1)
                decay = sum(delta[part].norm(dim=1) / lengths[part][active].square() for part in aim.parts)
                factor = torch.where(right, 0.1, 1.0) if aim.easing else torch.ones_like(nll)
                loss = aim.nll * factor * nll + aim.kl * kl + aim.decay * decay
            said = loss.detach()
            if not bool(said.isfinite().all()):
                raise ModelError(f"The loss of a fact is {float(said[~said.isfinite()][0])}: the model's weights are not finite.")
            nll_of[active] = nll.detach()
            done = said < aim.enough
            if aim.easing:
                done |= right & (kl.detach() <= 0.01)
            stop = monitor is not None and bool(monitor(step + 1, float(said.mean())))
            if stop or step + 1 == aim.steps or bool(done.all()):
                break
            grads = list(torch.autograd.grad(loss[~done].sum(), list(delta.values())))
            if bool(done.any()):
                left = (~done).nonzero()[:, 0]
                active, reference, grads = active[left], reference[left], [grad[left] for grad in grads]
                rows = (left[:, None] * self.prompts + torch.arange(self.prompts, device=device)).flatten()
                self.said, self.after = self.said.take(rows), self.after.take(left)
            steps_of[active] += 1
            for part, grad in zip(aim.parts, grads, strict=True):
                moved = adam[part].step(shift[part], grad, active)
                longest = aim.clamp * lengths[part][active]
                shift[part][active] = moved * (longest / moved.norm(dim=1).clamp(min=1e-30)).clamp(max=1.0)[:, None]
        return Targets(before, shift, nll_of, steps_of)

    def _nll(self, delta: Mapping[Part, Tensor]) -> tuple[Tensor, Tensor]:
        """Of each fact under way, and whether its target is the likeliest at every place."""
        shift = {part: value.repeat_interleave(self.prompts, dim=0) for part, value in delta.items()}
        logp = self.said.run(shift).float().log_softmax(-1)
        target = self.said.target
        real = target >= 0
        each = -logp.gather(-1, target.clamp(min=0)[..., None])[..., 0]
        nll = ((each * real).sum(-1) / real.sum(-1)).view(-1, self.prompts).mean(-1)
        right = ((each <= -logp.amax(-1)) | ~real).view(len(nll), -1).all(1)
        return nll, right


class _Adam:
    """Adam on some rows of a matrix at a time; a row that leaves does not come back, so that all have taken the same steps."""

    def __init__(self, like: Tensor, lr: float) -> None:
        self.first, self.second, self.lr, self.steps = torch.zeros_like(like), torch.zeros_like(like), lr, 0

    def step(self, value: Tensor, grad: Tensor, rows: Tensor) -> Tensor:
        """The rows of `value` after a step along their gradient."""
        self.steps += 1
        slow, fast = _BETAS
        first = self.first[rows].lerp(grad, 1 - slow)
        second = self.second[rows].lerp(grad.square(), 1 - fast)
        self.first[rows], self.second[rows] = first, second
        root = (second / (1 - fast**self.steps)).sqrt() + _EPSILON
        return value[rows] - self.lr / (1 - slow**self.steps) * first / root
