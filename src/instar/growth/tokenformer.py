"""Growth of a TokenFormer by pairs of keys and values."""

from __future__ import annotations

from typing import Any, get_args

import torch
from torch import nn

from instar.bench.seeds import stream
from instar.errors import ShapeError, TransformError
from instar.growth.growing import Grown, growing
from instar.growth.pattention import COUNTING, TEMPERED, Keys, Pattention, Tau
from instar.growth.plan import checked, target
from instar.growth.tokenformer_decoder import KINDS, TokenFormer
from instar.interfaces import Growth, Plan, Preserves


class TokenFormerGrowth(Growth):
    r"""K ← [K; K_new], V ← [V; V_new] in each Pattention: with K_new = 0 and τ as it was, no output changes by one bit.

    A new score is then 0, the norm of the row stays, and GELU(0) = 0 silences the new values; they are random, so that their
    keys get a gradient (GELU'(0) = ½), and learn themselves from the second step on.

    Args:
        keys: zero, or normal as in the released code, which changes the function. tau: fixed; grow with √n; or anneal, from one
            to the other as `TokenFormer.anneal` says; τ on such a way from an earlier growth stays where it is. values: normal.

    A plan names n (all), a kind (query, key, value, output, feed) or one layer (`blocks.0.feed`), the more special before the
    more general. New rows are parameters of their own beside the old ones in the optimiser's group: they begin without state and
    count their own steps. O(new parameters), beside two hashes of the model. Raises TransformError, also for a mode in which
    zeros count (softmax, gelu_layer_norm) unless keys is normal.
    """

    architecture = "tokenformer"
    sizes = ("n", *KINDS)

    def __init__(self, *, keys: Keys = "zero", tau: Tau = "fixed") -> None:
        if keys not in get_args(Keys) or tau not in get_args(Tau):
            raise ShapeError(
                f"keys must be one of {', '.join(get_args(Keys))} and tau one of {', '.join(get_args(Tau))}; received {keys!r} "
                f"and {tau!r}."
            )
        self.keys, self.tau = keys, tau

    @property
    def preserves(self) -> Preserves:
        return "bits" if self.keys == "zero" and self.tau != "grow" else "nothing"

    def grow(self, model: nn.Module, plan: Plan, *, optimizer: torch.optim.Optimizer | None = None, seed: int = 0) -> Grown:
        if not isinstance(model, TokenFormer):
            raise TransformError(f"A {type(model).__name__} is no TokenFormer: take a growth of plain decoders, such as lemon.")
        if self.preserves == "bits" and model.mode in COUNTING:
            raise TransformError(
                f"In mode {model.mode} a pair whose key is zero still counts, so that no pair can be added without changing the "
                "function. If that may be, say so with keys = 'normal'."
            )
        more = added(model, plan)
        settings: dict[str, Any] = {"keys": self.keys, "tau": self.tau, "plan": dict(plan), "seed": seed}
        with growing(model, optimizer, method="tokenformer", settings=settings) as work:
            for name, part in model.pattentions():
                if name in more:
                    tau = self.tau if model.mode in TEMPERED else "fixed"
                    old = list(part.keys), list(part.values)
                    new = part.grow(more[name], keys=self.keys, tau=tau, generator=stream(seed, f"grow/{name}/{part.n}"))
                    for fresh, beside in zip(new, old, strict=True):
                        work.kept.append(fresh, beside)
                else:  # the warm-up of this growth is not theirs
                    part.hold()
            model.describe()
        return work.grown


def added(model: TokenFormer, plan: Plan) -> dict[str, int]:
    """How many pairs each Pattention gets. Raises TransformError for names that no layer has, and where nothing would grow."""
    checked(plan)
    parts: dict[str, Pattention] = dict(model.pattentions())
    known = {"n", *KINDS, *parts}
    if unknown := sorted(set(plan) - known):
        raise TransformError(
            f"A TokenFormer has no {', '.join(unknown)}: a plan names n, {', '.join(KINDS)}, or a layer such as blocks.0.feed."
        )
    more = {}
    for name, part in parts.items():
        key = next((key for key in (name, name.rpartition(".")[2], "n") if key in plan), None)
        if key is not None and (extra := target(name, part.n, plan[key]) - part.n):
            more[name] = extra
    if not more:
        raise TransformError(f"Nothing would grow: every layer that {dict(plan)} names has that many pairs already.")
    return more
