"""The states that make a model say the facts: free vectors at the subject, found by gradient, of many facts in one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from instar.editing.layout import Layout, Part
from instar.editing.rows import Row, Rows, pack, row
from instar.editing.running import Above, resting
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

    O(facts · (1 + prefixes) · steps) passes through the layers from `layer` up. Raises EditError, ModelError for a loss that is
    not finite.
    """
    found = [
        _Search(model, layout, tokenizer, facts[start : start + batch], prefixes, layer, objective).run(monitor)
        for start in range(0, len(facts), batch)
    ]
    return Targets(
        {part: torch.cat([one.before[part] for one in found]) for part in objective.parts},
        {part: torch.cat([one.shift[part] for one in found]) for part in objective.parts},
        torch.cat([one.nll for one in found]),
        torch.cat([one.steps for one in found]),
    )


def prompts(tokenizer: Any, fact: Fact, prefixes: Sequence[str]) -> list[Row]:
    """The bare prompt of a fact and those after prefixes, each with the target."""
    return [row(tokenizer, fact.prompt, fact.subject, fact.target, prefix) for prefix in ("", *prefixes)]


class _Search:
    """One batch of facts: F of them, P prompts each, and one more for the KL."""

    def __init__(
        self,
        model: nn.Module,
        layout: Layout,
        tokenizer: Any,
        facts: Sequence[Fact],
        prefixes: Sequence[str],
        layer: int,
        objective: Objective,
    ) -> None:
        self.model, self.objective, self.facts = model, objective, len(facts)
        self.modules = {part: layout.layers[layer].module(part) for part in objective.parts}
        self.prompts = len(prefixes) + 1
        made: list[Row] = []
        for fact in facts:
            made += [*prompts(tokenizer, fact, prefixes), row(tokenizer, f"{fact.subject} is a", fact.subject)]
        device = next(model.parameters()).device
        rows: Rows = pack(made, device)
        self.places = torch.arange(len(rows), device=device).view(len(facts), self.prompts + 1)
        with resting(model):
            self.above = Above(model, layout, rows, layer, frozen=True)

    def run(self, monitor: Monitor | None) -> Targets:
        with resting(self.model):
            return self._run(monitor)

    def _run(self, monitor: Monitor | None) -> Targets:
        aim, device = self.objective, self.places.device
        reference, before = self._reference()
        lengths = {part: value.norm(dim=1) for part, value in before.items()}
        shift = {part: torch.zeros_like(value) for part, value in before.items()}
        adam = {part: _Adam(value, aim.lr) for part, value in shift.items()}
        nll_of, steps_of = torch.zeros(self.facts, device=device), torch.zeros(self.facts, dtype=torch.int64, device=device)
        active = torch.arange(self.facts, device=device)
        for step in range(aim.steps):
            delta = {part: shift[part][active].requires_grad_() for part in aim.parts}
            with torch.enable_grad():
                nll, kl, right = self._terms(active, delta, reference)
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
            grads = torch.autograd.grad(loss[~done].sum(), list(delta.values()))
            active = active[~done]
            steps_of[active] += 1
            for part, grad in zip(aim.parts, grads, strict=True):
                moved = adam[part].step(shift[part], grad[~done], active)
                longest = aim.clamp * lengths[part][active]
                shift[part][active] = moved * (longest / moved.norm(dim=1).clamp(min=1e-30)).clamp(max=1.0)[:, None]
        return Targets(before, shift, nll_of, steps_of)

    @torch.no_grad()
    def _reference(self) -> tuple[Tensor, dict[Part, Tensor]]:
        """Log-probabilities after the subject in "{subject} is a" [F, V], and outputs of the parts on the bare prompts [F, D]."""
        kl_rows, bare = self.places[:, -1], self.places[:, 0]
        logits, _ = self.above.run(kl_rows)
        _, before = self.above.run(bare, read={part: (module, "out") for part, module in self.modules.items()})
        return logits[:, 0].float().log_softmax(-1), {part: before[part].float() for part in self.modules}

    def _terms(self, active: Tensor, delta: Mapping[Part, Tensor], reference: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """NLL, KL, and whether the target is the likeliest at every place; each [active]."""
        places = self.places[active].flatten()
        spread = {part: value.repeat_interleave(self.prompts + 1, dim=0) for part, value in delta.items()}
        change = {self.modules[part]: self.above.at_subject(places, value) for part, value in spread.items()}
        logits, _ = self.above.run(places, change=change)
        logp = logits.float().log_softmax(-1).view(len(active), self.prompts + 1, *logits.shape[1:])
        after = logp[:, -1, 0]
        known = reference[active]
        kl = (known.exp() * (known - after)).sum(-1)
        logp = logp[:, :-1]
        target = self.above.rows.target[places][:, : logp.shape[2]].view(len(active), self.prompts + 1, -1)[:, :-1]
        real = target >= 0
        each = -logp.gather(-1, target.clamp(min=0)[..., None])[..., 0]
        nll = ((each * real).sum(-1) / real.sum(-1)).mean(-1)
        right = ((logp.argmax(-1) == target) | ~real).flatten(1).all(1)
        return nll, kl, right


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
