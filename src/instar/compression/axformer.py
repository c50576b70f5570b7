"""AxFormer: whatever hurts a fine-tuned transformer on its task is taken out, without training."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import nn

from instar.compression.pruning.cutting import cutting
from instar.compression.pruning.greedy import Order, Plan, Policy, Rules, search
from instar.compression.pruning.layout import Layout, layout
from instar.compression.pruning.masking import masked, zeros
from instar.compression.pruning.removed import Element, Removed
from instar.compression.pruning.scoring import Metric, Scorer, Validation, evaluating
from instar.errors import ShapeError, TransformError, UnknownNameError
from instar.interfaces import Monitor, Transform
from instar.receipt import Receipt, updating

Form = Literal["cut", "zeroed"]
_SAME = 1e-3
"""Relative difference of a loss between a model that is masked and one that is cut."""


class Axformer(Transform):
    """Greedy removal: S ← S ∪ {c} where L(S ∪ {c}) < L_min and #{j : ℓ_j(S ∪ {c}) ≤ ℓ_j(∅)} > min_not_worse · N.

    Hard attention is tried first, layer by layer from the first. Then, from the last layer to the first, the FFN, and the
    attention: the whole block; where that is rejected with L < nearly · L_min, its groups of neurons, its heads, one by one.
    Norms and residuals stay. No weight is trained.

    Args:
        policy: "accuracy" is the test above. "efficiency" accepts while L ≤ (1 + epsilon) · L(∅), whatever single samples do.
        epsilon: loss that efficiency may cost, as a fraction.
        min_not_worse: fraction of samples that may not get worse than they were in the whole model.
        nearly: what is in a rejected block is tried where its loss is within this factor of the limit.
        group_size: consecutive neurons of the FFN that go together.
        top_k: probabilities that hard attention keeps; 0 leaves it out. It costs time. renormalise: let them sum to 1 again.
        metric: loss, or accuracy, which then takes the place of the loss everywhere. Another measure comes with the data.
        order: of layers: last_first, first_first, or gradient, those first whose parts the loss depends on least.
        flops: end when the linear layers of the blocks need this fraction of their FLOPs. With efficiency, epsilon is doubled up
            to five times until they do. 0 sets no target; one that cannot be reached is no error.
        form: "cut" makes tensors smaller; "zeroed" leaves shapes as they are and sets weights to 0: the same function, no faster,
            which plain `transformers` loads. It has no hard attention.

    O(evaluations · N · forward of half the model), evaluations ≤ 3 n + heads + groups.
    """

    method: ClassVar[str] = "axformer"

    def __init__(
        self,
        *,
        policy: Policy = "accuracy",
        epsilon: float = 0.05,
        min_not_worse: float = 0.5,
        nearly: float = 1.1,
        group_size: int = 256,
        top_k: int = 30,
        renormalise: bool = False,
        metric: Metric = "loss",
        order: Order = "last_first",
        flops: float = 0.0,
        form: Form = "cut",
    ) -> None:
        if form not in get_args(Form):
            raise UnknownNameError.among("form", form, get_args(Form))
        if form == "zeroed" and top_k:
            raise ShapeError("Hard attention is no matter of weights, so that there is no zeroed form of it: give top_k=0.")
        self.policy, self.epsilon, self.min_not_worse, self.nearly = policy, epsilon, min_not_worse, nearly
        self.group_size, self.top_k, self.renormalise, self.metric = group_size, top_k, renormalise, metric
        self.order, self.flops, self.form = order, flops, form
        self._rules = Rules(policy, epsilon, min_not_worse, nearly, group_size, top_k, renormalise, metric, order, flops)

    def search(self, model: nn.Module, data: Any, *, monitor: Monitor | None = None) -> Plan:
        """What would be taken out, and how that was found; the model is not changed. See `pruning.greedy.search`."""
        return search(model, data, self._rules, monitor=monitor)

    def apply(self, model: nn.Module, data: Any = None, *, monitor: Monitor | None = None) -> Receipt:
        """Search, and take out what was found, in one update whose receipt holds the plan.

        data: labelled batches that the model was not trained on, as `model(**batch)` takes them, or `Validation(batches, loss)`.
        monitor: called with (candidates tried, loss so far); True ends the search with what is found.

        Raises TransformError for no data, a model that is pruned already or that computes something else once it is cut;
        DataError, ModelError.
        """
        validation = Validation.of(data, self.metric)
        parts = layout(model, self.group_size)
        if self.form == "cut":
            rehearse(model, parts, validation, self.top_k)
        plan = self.search(model, validation, monitor=monitor)
        settings = {**asdict(self._rules), "form": self.form, "plan": plan.json()}
        new = zeros(parts, plan.removed) if self.form == "zeroed" else {}
        with updating(model, method=self.method, settings=settings, changes=list(new)) as update, torch.no_grad():
            if self.form == "cut":
                cutting(model, parts, plan.removed)
            for name, value in new.items():
                model.get_parameter(name).copy_(value)
        return update.receipt


class _Rehearsed(Exception):  # noqa: N818 - no error: it ends the rehearsal
    pass


def rehearse(model: nn.Module, parts: Layout, data: Validation, top_k: int) -> None:
    """Cut a part of every kind out of a model, hold its losses on one batch against those under masks, and undo that.

    An architecture whose code computes otherwise with fewer heads or neurons is found before the search, not after it. Raises
    TransformError.
    """
    chosen = [element for layer in range(parts.depth) for element in _one_of_each(parts, layer)]
    if parts.depth > 1:
        chosen += [Element("ffn", 0), Element("attention", parts.depth - 1)]
    chosen += [Element("hard", layer) for layer in range(parts.depth) if top_k]
    removed = Removed(tuple(chosen), top_k, False, parts.group_size)
    one = Validation(data.batches[:1], data.loss)
    with evaluating(model), masked(model, removed):
        expected = Scorer(model, parts, one).losses()
    found = None
    try:
        with evaluating(model), updating(model, method="rehearse", changes=()):  # an update that raises leaves nothing behind
            cutting(model, parts, removed)
            found = Scorer(model, parts, one).losses()
            raise _Rehearsed
    except _Rehearsed:
        pass
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
        raise TransformError(f"{_UNCUT.format(type(model).__name__)}: {type(error).__name__}: {error}") from error
    assert expected is not None
    assert found is not None
    if not all(abs(a - b) <= _SAME * max(1.0, abs(a)) for a, b in zip(expected, found, strict=True)):
        raise TransformError(f"{_UNCUT.format(type(model).__name__)}: its losses are others than under masks.")


_UNCUT = "{} does not run once heads or neurons are cut out of it; form='zeroed' with top_k=0 takes it in its old shapes"


def _one_of_each(parts: Layout, layer: int) -> list[Element]:
    return [
        Element(kind, layer, count - 1)  # type: ignore[arg-type]
        for kind, count in (("groups", parts.groups[layer]), ("heads", parts.heads[layer]))
        if count > 1
    ]
