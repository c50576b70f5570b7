"""Small models, plans and optimisers, the same at every call: what the checks of a growth use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.checks.subject import Subject
from instar.errors import ContractError
from instar.interfaces import Growth, Plan
from instar.models.decoder import Decoder

VOCABULARY = 29
_WIDTH, _HIDDEN, _HEADS = 32, 64, 2

OPTIMISERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "AdamW in two groups": lambda model: torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": 0.1, "lr": 2e-3},
            {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
        ],
        amsgrad=True,
        foreach=True,
    ),
    "SGD with momentum": lambda model: torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9, nesterov=True, foreach=True),
    "RMSprop": lambda model: torch.optim.RMSprop(model.parameters(), lr=1e-3, momentum=0.5, centered=True),
    "Adagrad": lambda model: torch.optim.Adagrad(model.parameters(), lr=1e-2),
}


def build(subject: Subject) -> Growth:
    """The growth with the subject's arguments."""
    made = subject.cls(**subject.arguments)
    if not isinstance(made, Growth):
        raise ContractError(f"{subject.cls.__name__} is no instar.interfaces.Growth: derive the class from it.")
    return made


def built(growth: Growth, dtype: torch.dtype = torch.float64) -> Any:
    """A model of the kind that a growth takes, its parameters off their start values, in evaluation mode."""
    from instar.growth.tokenformer_decoder import TokenFormer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        model: Decoder
        if growth.architecture == "tokenformer":
            model = TokenFormer(VOCABULARY, _WIDTH, 2, heads=_HEADS, n=_WIDTH, feed=_HIDDEN)
        else:
            model = Decoder(VOCABULARY, _WIDTH, 2, "softmax", heads=_HEADS, hidden=_HIDDEN)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model.to(dtype).eval()


def plans(growth: Growth) -> list[Plan]:
    """Sizes doubled alone, the first, second and last of them, and all together."""
    sizes = list(dict.fromkeys([*growth.sizes[:2], growth.sizes[-1]]))
    alone: list[Plan] = [{size: "2x"} for size in sizes]
    return alone if len(alone) == 1 else [*alone, dict.fromkeys(growth.sizes, "2x")]


def tokens() -> Tensor:
    """Fixed tokens [3, 13]."""
    return torch.randint(VOCABULARY, (3, 13), generator=torch.Generator().manual_seed(7))


def logits(model: Any) -> Tensor:
    """What a model says of fixed tokens."""
    with torch.no_grad():
        found: Tensor = model(tokens())[0]
    return found


def loss(model: Any) -> Tensor:
    """The loss of the batch on which `train` trains."""
    ids = tokens()
    return F.cross_entropy(model(ids[:, :-1])[0].flatten(0, 1), ids[:, 1:].flatten())


def train(model: Any, optimiser: torch.optim.Optimizer, steps: int) -> list[float]:
    """Steps on one batch."""
    losses = []
    for _ in range(steps):
        found = loss(model)
        optimiser.zero_grad()
        found.backward()
        optimiser.step()
        losses.append(float(found.detach()))
    return losses


def same_state(optimiser: torch.optim.Optimizer, before: tuple[dict[Any, Any], list[list[Any]]]) -> bool:
    """Whether an optimiser has the parameters and the entries that it had, by identity."""
    state, groups = before
    now = [list(group["params"]) for group in optimiser.param_groups]
    return (
        list(optimiser.state) == list(state)
        and all(optimiser.state[p] is entries for p, entries in state.items())
        and [[id(p) for p in group] for group in now] == [[id(p) for p in group] for group in groups]
    )
