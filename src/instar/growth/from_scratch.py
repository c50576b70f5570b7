"""The control that forgets: a fresh model of the size that the plan wants."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import nn

from instar.bench.seeds import derive
from instar.errors import ShapeError, TransformError
from instar.growth.continued_base import Architecture, known, targets
from instar.growth.growing import Grown, growing
from instar.growth.tokenformer_decoder import KINDS, TokenFormer
from instar.growth.widening import attention, heads
from instar.interfaces import Growth, Plan, Preserves
from instar.models.decoder import Decoder

Budget = Literal["extra", "steps", "flops"]


class FromScratch(Growth):
    """Every parameter is drawn anew, at the size of the plan; the optimiser begins anew.

    Args:
        architecture: of which models it is the control. budget: in a problem, the steps after the first growth (extra), all of
            them (steps), or as many as cost the FLOPs of the whole run that grows.

    A plan names what `tokenformer` and `lemon` take. Raises TransformError.
    """

    def __init__(self, *, architecture: Architecture = "tokenformer", budget: Budget = "extra") -> None:
        if architecture not in get_args(Architecture) or budget not in get_args(Budget):
            raise ShapeError(
                f"architecture must be 'tokenformer' or 'decoder' and budget one of {', '.join(get_args(Budget))}; received "
                f"{architecture!r} and {budget!r}."
            )
        self.architecture, self.budget = architecture, budget

    @property
    def sizes(self) -> tuple[str, ...]:  # type: ignore[override]
        return known(self.architecture)

    @property
    def preserves(self) -> Preserves:
        return "nothing"

    def grow(self, model: nn.Module, plan: Plan, *, optimizer: torch.optim.Optimizer | None = None, seed: int = 0) -> Grown:
        wanted = targets(model, plan, self.architecture, "from_scratch")
        assert isinstance(model, Decoder)
        like = model.embedding.weight
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, f"grow/scratch/{sum(p.numel() for p in model.parameters())}"))
            fresh = larger(model, wanted).to(like.device, like.dtype).train(model.training)
        with growing(model, optimizer, method="from_scratch", settings={"plan": dict(plan), "seed": seed}) as work:
            old = dict(model.named_parameters())
            new = dict(fresh.named_parameters())
            for name, parameter in new.items():
                if name not in old:
                    # Groups are told apart by the number of axes, if at all.
                    alike = [p for p in reversed(old.values()) if p.dim() == parameter.dim()]
                    work.kept.append(parameter, alike or list(old.values()))
            for name, parameter in old.items():
                work.kept.replace(parameter, new.get(name), None)
            for own, module in fresh._modules.items():
                model._modules[own] = module
            for own in ("width", "depth", "hidden", "config"):
                if own in vars(fresh):
                    setattr(model, own, getattr(fresh, own))
        return work.grown


def larger(model: Decoder, wanted: dict[str, int]) -> Decoder:
    """A fresh model of these sizes (see `targets`). Raises TransformError for a decoder that no address describes."""
    config: dict[str, Any] = dict(model.config or {})
    if not config:
        raise TransformError("This decoder has no address, from which alone another can be built.")
    if isinstance(model, TokenFormer):
        names = dict(model.pattentions())
        layers = [
            {kind: [names[name].n + wanted.get(name, 0)] for kind in KINDS for name in [f"blocks.{i}.{kind}"]}
            for i in range(model.depth)
        ]
        return TokenFormer(**{**config, "layers": layers})
    mixer = attention(model)
    count = wanted["width"] // mixer.head_width
    return Decoder(**{**config, **wanted, **heads(config, count, count * mixer.kv_heads // mixer.heads)})
