"""The search of AxFormer: block by block, and inside a block only where it is nearly harmless."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from torch import nn

from instar.compression.pruning.importance import importance
from instar.compression.pruning.layout import Layout, layout
from instar.compression.pruning.masking import Masks, masking
from instar.compression.pruning.removed import Element, Removed
from instar.compression.pruning.scoring import Metric, Scorer, Validation, evaluating
from instar.errors import ShapeError, UnknownNameError
from instar.interfaces import Monitor

Policy = Literal["accuracy", "efficiency"]
Order = Literal["last_first", "first_first", "gradient"]
_MARGIN = 1e-6
"""A loss must fall by more: less is noise of the last digits."""
_PASSES = 6
"""At most, where a size is asked for: the last tolerates 32 times as much as the first."""


@dataclass(frozen=True)
class Rules:
    """What is tried, and what is accepted; `Axformer` says what each means."""

    policy: Policy = "accuracy"
    epsilon: float = 0.05
    min_not_worse: float = 0.5
    nearly: float = 1.1
    group_size: int = 256
    top_k: int = 30
    renormalise: bool = False
    metric: Metric = "loss"
    order: Order = "last_first"
    flops: float = 0.0

    def __post_init__(self) -> None:
        for what, value, known in (
            ("policy", self.policy, Policy),
            ("order", self.order, Order),
            ("metric", self.metric, Metric),
        ):
            if value not in get_args(known):
                raise UnknownNameError.among(what, str(value), get_args(known))
        if self.group_size < 1 or self.top_k < 0:
            raise ShapeError(f"group_size expects 1 or more and top_k 0 or more; received {self.group_size} and {self.top_k}.")
        if not (0 <= self.min_not_worse < 1 and self.nearly >= 1 and self.epsilon >= 0 and 0 <= self.flops < 1):
            raise ShapeError(
                "min_not_worse and flops expect fractions below 1, nearly 1 or more and epsilon 0 or more; received "
                f"{self.min_not_worse}, {self.flops}, {self.nearly} and {self.epsilon}."
            )


@dataclass(frozen=True)
class Trial:
    """One candidate. loss: None where it was clear before all samples were seen that it is not accepted."""

    element: Element
    loss: float | None
    accepted: bool


@dataclass(frozen=True)
class Plan:
    """What a search found, and how."""

    removed: Removed
    before: float
    """Mean validation loss of the whole model."""
    after: float
    flops: float
    """Of the linear layers of the blocks, as a fraction of what they were."""
    samples: int
    trials: tuple[Trial, ...]

    @property
    def evaluations(self) -> int:
        """Candidates that were tried."""
        return len(self.trials)

    def json(self) -> dict[str, Any]:
        """For files and receipts."""
        trials = [{**asdict(trial), "element": str(trial.element)} for trial in self.trials]
        found = {"before": self.before, "after": self.after, "flops": self.flops, "samples": self.samples}
        return {"removed": self.removed.json(), **found, "evaluations": self.evaluations, "trials": trials}


def search(
    model: nn.Module,
    data: Any,
    rules: Rules | None = None,
    *,
    cached: bool = True,
    early: bool = True,
    monitor: Monitor | None = None,
) -> Plan:
    """Find what can be taken out of a model; the model is not changed.

    Args:
        data: labelled batches or a `Validation`, none of which the model was trained on.
        cached: resume each evaluation at the layer that changed. early: end it when its outcome is clear. Both change nothing
            but the time.
        monitor: called with (candidates tried, loss so far); True ends the search with what is found.

    At most 3 n + heads + groups evaluations of a model of n layers (times the passes where `flops` asks for several), each of
    half the model on average. Raises TransformError, DataError, ModelError.
    """
    rules = rules or Rules()
    parts = layout(model, rules.group_size)
    validation = Validation.of(data, rules.metric)
    with evaluating(model), masking(model, parts, hard=rules.top_k > 0) as masks:
        greedy = _Greedy(parts, rules, masks, Scorer(model, parts, validation, cached=cached), early, monitor)
        layers = list(range(parts.depth))
        if rules.order == "last_first":
            layers.reverse()
        elif rules.order == "gradient":
            each = importance(model, parts, validation)
            layers.sort(key=lambda layer: sum(value for element, value in each.items() if element.layer == layer))
        return greedy.run(layers)


class _Greedy:
    """The state of a search: what is out, and the best loss so far."""

    def __init__(self, parts: Layout, rules: Rules, masks: Masks, scorer: Scorer, early: bool, monitor: Monitor | None) -> None:
        self.parts, self.rules, self.masks, self.scorer, self.early, self.monitor = parts, rules, masks, scorer, early, monitor
        self.removed = Removed(top_k=rules.top_k, renormalise=rules.renormalise, group_size=rules.group_size)
        masks.set(self.removed)
        losses = scorer.losses()
        assert losses is not None
        self.whole = losses
        self.before = self.loss = math.fsum(losses) / len(losses)
        self.epsilon = rules.epsilon
        self.trials: list[Trial] = []
        self.stopped = False

    def run(self, layers: list[int]) -> Plan:
        """Hard attention first, from the first layer on; then blocks and what is in them."""
        if self.rules.top_k:
            for layer in range(self.parts.depth):
                self.attempt(Element("hard", layer))
        for _ in range(_PASSES if self.rules.flops and self.rules.policy == "efficiency" else 1):
            for layer in layers:
                for block, inside in (("ffn", "groups"), ("attention", "heads")):
                    self.layer(layer, block, inside)
            if self.done:
                break
            self.epsilon *= 2
        share = self.parts.share(self.removed)
        return Plan(self.removed, self.before, self.loss, share, len(self.whole), tuple(self.trials))

    @property
    def done(self) -> bool:
        """Whether nothing more shall be tried."""
        return self.stopped or bool(self.rules.flops and self.parts.share(self.removed) <= self.rules.flops)

    def layer(self, layer: int, block: Any, inside: Any) -> None:
        """A block; what is in it, where the block is nearly harmless."""
        whole = Element(block, layer)
        if whole in self.removed.elements or self.attempt(whole) != "nearly":
            return
        for element in self.parts.fine(layer):
            if element.kind == inside and element not in self.removed.elements:
                self.attempt(element)

    def attempt(self, element: Element) -> Literal["accepted", "nearly", "rejected"]:
        """Take the element out, and put it back unless that is accepted."""
        if self.done:
            return "rejected"
        candidate = self.removed.plus(element)
        self.masks.set(candidate)
        split = element.kind in ("ffn", "attention")
        losses = self.scorer.losses(element.layer, self._stop(split) if self.early else None)
        loss = None if losses is None else math.fsum(losses) / len(losses)
        accepted = losses is not None and loss is not None and self._accepts(loss, self._worse(losses))
        self.trials.append(Trial(element, loss, accepted))
        if accepted and loss is not None:
            self.removed, self.loss = candidate, loss
            self.scorer.forget(element.layer)
        else:
            self.masks.set(self.removed)
        self.stopped = self.monitor is not None and bool(self.monitor(len(self.trials), self.loss))
        if accepted:
            return "accepted"
        return "nearly" if loss is not None and loss < self._near() else "rejected"

    def _limit(self) -> float:
        return self.loss if self.rules.policy == "accuracy" else (1 + self.epsilon) * self.before

    def _near(self) -> float:
        return self.rules.nearly * self._limit()

    def _accepts(self, loss: float, worse: int) -> bool:
        if self.rules.policy == "efficiency":
            return loss <= self._limit()
        return loss < self.loss - _MARGIN and not self._too_many(worse)

    def _too_many(self, worse: int) -> bool:
        """Whether too few samples are left that are no worse than in the whole model."""
        return len(self.whole) - worse <= math.floor(self.rules.min_not_worse * len(self.whole))

    def _worse(self, losses: list[float]) -> int:
        return sum(new > old for new, old in zip(losses, self.whole, strict=False))

    def _stop(self, split: bool) -> Any:
        """Whether the losses so far decide: what is still to come cannot lower their sum, nor how many are worse."""

        def stop(losses: list[float]) -> bool:
            least = math.fsum(losses) / len(self.whole)
            if split and least < self._near():
                return False
            lost = self.rules.policy == "accuracy" and self._too_many(self._worse(losses))
            return lost or not self._accepts(least, 0)

        return stop
