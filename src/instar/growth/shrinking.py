"""A TokenFormer with fewer pairs, with pairs in one piece, or of which only the newest pairs are trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from instar.errors import TransformError
from instar.growth.growing import Grown, growing
from instar.growth.pattention import Pattention
from instar.growth.tokenformer_decoder import KINDS, TokenFormer
from instar.interfaces import Plan
from instar.receipt import Receipt, updating


def shrink(
    model: TokenFormer, gone: Mapping[str, Tensor | Sequence[int]], *, optimizer: torch.optim.Optimizer | None = None
) -> Grown:
    """Take pairs out of a TokenFormer, in place, all or nothing; the optimiser keeps what it knows of those that stay.

    gone: layer, such as `blocks.0.feed`, -> numbers of its pairs; `weakest` names some. The function changes with what they
    contributed; τ stays. Raises TransformError for layers that are not there, ShapeError for pairs that are not.
    """
    parts: dict[str, Pattention] = dict(model.pattentions())
    if unknown := sorted(set(gone) - set(parts)):
        raise TransformError(f"There is no layer {', '.join(unknown)}; the layers are {', '.join(parts)}.")
    counts = {name: len(torch.as_tensor(idx).reshape(-1).unique()) for name, idx in gone.items()}
    with growing(model, optimizer, method="shrink", settings={"pairs": counts}) as work:
        for name, idx in gone.items():
            for old, new, rows in parts[name].shrink(idx):
                work.kept.replace(old, new, lambda state, _, rows=rows: state[rows])  # type: ignore[misc]
        model.describe()
    return work.grown


def merge(model: TokenFormer, *, optimizer: torch.optim.Optimizer | None = None) -> Grown:
    """Make the pairs of every layer one parameter again, in place, all or nothing: for speed, once growths have settled.

    Outputs are as before but for rounding. An optimiser keeps its moments row by row, and counts steps for all rows as it did for
    the oldest. Raises TransformError where nothing grew, ShapeError where pairs are partly frozen.
    """
    if all(len(part.keys) == 1 for _, part in model.pattentions()):
        raise TransformError("Every layer has one parameter for its pairs already: there is nothing to merge.")
    with growing(model, optimizer, method="merge", settings={}) as work:
        for _, part in model.pattentions():
            for old, new in part.merge():
                work.kept.merge(old, new)
        model.describe()
    return work.grown


def weakest(model: TokenFormer, plan: Plan) -> dict[str, Tensor]:
    """The pairs of least ‖k‖ · ‖v‖ that must go until each layer has what the plan wants (numbers only), for `shrink`.

    A plan names n, kinds or layers as in growth. Raises TransformError for one that wants more than there is.
    """
    found = {}
    for name, part in model.pattentions():
        wanted = next((plan[key] for key in (name, name.rpartition(".")[2], "n") if key in plan), part.n)
        if type(wanted) is not int or not 1 <= wanted <= part.n:
            raise TransformError(f"{name} has {part.n} pairs; shrinking expects a number from 1 to that, received {wanted!r}.")
        size = part.key.detach().norm(dim=1) * part.value.detach().norm(dim=1)
        if wanted < part.n:
            found[name] = size.argsort(stable=True)[: part.n - wanted].sort().values
    if not found:
        raise TransformError(f"Nothing would shrink: a plan names n, {', '.join(KINDS)} or layers; received {dict(plan)}.")
    return found


def freeze_old(model: TokenFormer) -> Receipt:
    """Train the pairs of the last growth only: everything else, embedding and norm included, needs no gradient from now on.

    The receipt's `undo` brings the flags back. Raises TransformError for a model that never grew.
    """
    new = {id(p) for _, part in model.pattentions() if len(part.keys) > 1 for p in (part.keys[-1], part.values[-1])}
    if not new:
        raise TransformError("This model never grew, so that all of its pairs are old: grow it first.")
    with updating(model, method="freeze_old", changes=()) as update:
        for parameter in model.parameters():
            if id(parameter) not in new:
                parameter.requires_grad_(False)
    return update.receipt
