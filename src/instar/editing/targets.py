"""The states that make a model say the facts: free vectors at the subject, found by gradient, of many facts in one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from instar.editing.gelu import fused
from instar.editing.grouped import Group, length, together
from instar.editing.layout import Layer, Layout, Part
from instar.editing.past import Past
from instar.editing.rows import Row, pack, row
from instar.editing.running import resting
from instar.editing.shifted import Shifted
from instar.errors import ModelError, ShapeError
from instar.interfaces import Fact, Monitor

_TOKENS = 1024
"""In one pass: what they leave for the way back then stays in a core's own memory."""
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
    batch: int = 64,
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
    # Rows of like length run together, from the subject on and then up to it: what is padded is wasted.
    order = sorted(range(len(facts)), key=lambda i: (length(made[i]), made[i][0].subject))
    batches = [order[start : start + batch] for start in range(0, len(facts), batch)]
    with resting(model), fused(model):
        found = [
            _Search(model, layout, [made[i] for i in some], [kept[i] for i in some], layout.layers[layer], objective).run(monitor)
            for some in batches
        ]
    back = torch.tensor(order).argsort()
    return Targets(
        {part: torch.cat([one.before[part] for one in found])[back] for part in objective.parts},
        {part: torch.cat([one.shift[part] for one in found])[back] for part in objective.parts},
        torch.cat([one.nll for one in found])[back],
        torch.cat([one.steps for one in found])[back],
    )


def prompts(tokenizer: Any, fact: Fact, prefixes: Sequence[str]) -> list[Row]:
    """The bare prompt of a fact and those after prefixes, each with the target."""
    return [row(tokenizer, fact.prompt, fact.subject, fact.target, prefix) for prefix in ("", *prefixes)]


class _Search:
    """One batch of facts: F of them in groups, P prompts each, and one more for the KL."""

    def __init__(
        self,
        model: nn.Module,
        layout: Layout,
        made: Sequence[Sequence[Row]],
        kept: Sequence[Row],
        layer: Layer,
        objective: Objective,
    ) -> None:
        self.objective, self.facts = objective, len(made)
        self.device = next(model.parameters()).device
        after = pack(kept, self.device).to_subject()
        self.after = Shifted(model, layout, after, layer, Past.of(model, layout, after))
        rows = pack([one for same in made for one in same], self.device)
        past = Past.of(model, layout, rows)
        groups = together(made, _TOKENS if self.device.type == "cpu" else 16 * _TOKENS)
        self.groups = [
            Group(Shifted(model, layout, rows.take(places), layer, past and past.take(places)), len(made[0]))
            for places in torch.arange(len(rows), device=self.device).split(groups)
        ]

    def run(self, monitor: Monitor | None) -> Targets:
        aim, device = self.objective, self.device
        with torch.no_grad():
            reference = self.after.run()[:, 0].float().log_softmax(-1)
            outputs = [group.outputs(aim.parts) for group in self.groups]
        before = {part: torch.cat([one[part] for one in outputs]) for part in aim.parts}
        lengths = {part: value.norm(dim=1) for part, value in before.items()}
        shift = {part: torch.zeros_like(value) for part, value in before.items()}
        adam = {part: _Adam(value, aim.lr) for part, value in shift.items()}
        nll_of, steps_of = torch.zeros(self.facts, device=device), torch.zeros(self.facts, dtype=torch.int64, device=device)
        active = torch.arange(self.facts, device=device)
        for step in range(aim.steps):
            last = step + 1 == aim.steps
            delta = {part: shift[part][active].requires_grad_() for part in aim.parts}
            with torch.enable_grad():
                after = self.after.run(delta)[:, 0].float().log_softmax(-1)
                kl = (reference.exp() * (reference - after)).sum(-1)
                decay = sum(delta[part].norm(dim=1) / lengths[part][active].square() for part in aim.parts)
                held = aim.kl * kl + aim.decay * decay
                total = held.sum()  # here, where the graph is kept also of who calls without gradients
            grads = [] if last else list(torch.autograd.grad(total, list(delta.values())))
            counts = [len(group) for group in self.groups]
            shares = zip(*(value.detach().split(counts) for value in delta.values()), strict=True)
            terms = [
                group.nll(dict(zip(aim.parts, share, strict=True)), 0.1 if aim.easing else 1.0, gradient=not last)
                for group, share in zip(self.groups, shares, strict=True)
            ]
            nll, right, eased = (torch.cat(one) for one in zip(*(term[:3] for term in terms), strict=True))
            said = held.detach() + aim.nll * eased
            if not bool(said.isfinite().all()):
                raise ModelError(f"The loss of a fact is {float(said[~said.isfinite()][0])}: the model's weights are not finite.")
            nll_of[active] = nll
            done = said < aim.enough
            if aim.easing:
                done |= right & (kl.detach() <= 0.01)
            stop = monitor is not None and bool(monitor(step + 1, float(said.mean())))
            if stop or last or bool(done.all()):
                break
            mine = [torch.cat(of) for of in zip(*(term[3] for term in terms), strict=True)]
            grads = [held_by + aim.nll * of for held_by, of in zip(grads, mine, strict=True)]
            if bool(done.any()):
                left = (~done).nonzero()[:, 0]
                active, reference, grads = active[left], reference[left], [grad[left] for grad in grads]
                self.after = self.after.take(left)
                kept = zip(self.groups, (~done).split(counts), strict=True)
                self.groups = [group.take(some.nonzero()[:, 0]) for group, some in kept if bool(some.any())]
            steps_of[active] += 1
            for part, grad in zip(aim.parts, grads, strict=True):
                moved = adam[part].step(shift[part], grad, active)
                longest = aim.clamp * lengths[part][active]
                shift[part][active] = moved * (longest / moved.norm(dim=1).clamp(min=1e-30)).clamp(max=1.0)[:, None]
        return Targets(before, shift, nll_of, steps_of)


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
