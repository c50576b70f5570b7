"""The contract of `Pooling`: a bag is a set, alone or beside others."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from instar import catalogue, formula
from instar.checks.arguments import constructed, keeps, refused
from instar.checks.subject import Check, Subject
from instar.errors import CardError, ContractError, ShapeError
from instar.interfaces import Pooling

_SIZES = (1, 7, 40, 3)
"""Instances of the bags that are asked together."""
_HALF = 0.1
"""Of the output: what half precision may change."""


def check_arguments(subject: Subject) -> None:
    """Every argument is kept under its name; presets and ends of knobs construct."""
    for what, values, made in constructed(subject, lambda values: subject.cls(subject.width, **values)):
        keeps(subject, what, {**values, "width": subject.width}, made, "records say what was run")
        if not isinstance(made, Pooling):
            raise ContractError(f"{what}: {subject.cls.__name__} is no instar.interfaces.Pooling: derive from it.")


def check_shapes(subject: Subject) -> None:
    """[B, out_width] in the type of the weights; one bag, one instance; bags stay as they are; in eval mode twice the same."""
    for dtype in (torch.float32, torch.float64):
        pooling = _built(subject, dtype)
        for B, N in ((1, 1), (1, 17), (3, 5)):
            x = torch.randn(B, N, subject.width, dtype=dtype)
            before = x.clone()
            found = pooling(x)
            if found.shape != (B, pooling.out_width) or found.dtype != dtype:
                said = f"expected {dtype} [{B}, {pooling.out_width}], received {found.dtype} {list(found.shape)}"
                raise ContractError(f"{B} bags of {N}: {said}.")
            if not torch.equal(found, pooling(x)):
                raise ContractError("The same bags gave another vector the second time.")
            if not torch.equal(x, before):
                raise ContractError("It changed the bags.")
            _near(pooling(x.transpose(0, 2).contiguous().transpose(0, 2)), found, subject, "with another layout in memory")


def check_order(subject: Subject) -> None:
    """Instances in another order are the same bag."""
    pooling, x = _built(subject), torch.randn(3, 40, subject.width, dtype=subject.dtype)
    _near(pooling(x[:, torch.randperm(40)]), pooling(x), subject, "with the instances in another order")


def check_padding(subject: Subject) -> None:
    """What padding holds and where it stands does not matter; nor do the other bags."""
    pooling, (x, mask) = _built(subject), _bags(subject)
    wanted = torch.cat([pooling(x[b : b + 1, :n]) for b, n in enumerate(_SIZES)])
    for what in (0.0, 1e4, math.inf, math.nan):
        _near(pooling(x.masked_fill(~mask.unsqueeze(-1), what), mask=mask), wanted, subject, f"where padding holds {what}")
    _near(pooling(x.flip(1), mask=mask.flip(1)), wanted, subject, "with padding in front")


def check_reference(subject: Subject) -> None:
    """`forward` of padded bags equals `reference` of each: values, gradients of instances and of all parameters."""
    pooling = _built(subject)
    for size in (1.0, 10.0):
        (x, mask), found = _bags(subject), []
        x = size * x
        up = torch.randn(len(_SIZES), pooling.out_width, dtype=subject.dtype)
        for form in ("forward", "reference"):
            own = x.clone().requires_grad_()
            if form == "forward":
                y = pooling(own, mask=mask)
            else:
                y = torch.stack([pooling.reference(own[b, :n]) for b, n in enumerate(_SIZES)])
            learnt = [p for p in pooling.parameters() if p.requires_grad]
            found.append([y.detach(), *torch.autograd.grad(y, [own, *learnt], up, allow_unused=True)])
        names = [f"the gradient of {name}" for name, p in pooling.named_parameters() if p.requires_grad]
        for name, got, want in zip(["the output", "the gradient of x", *names], *found, strict=True):
            if got is None or want is None:
                raise ContractError(f"There is no {name.removeprefix('the ')}: what is a parameter decides the output.")
            _near(got, want, subject, f"in {name} from that of `reference`, for instances of size {size:g}")


def check_empty(subject: Subject) -> None:
    """Bags without an instance give one finite vector, and finite gradients, also beside others."""
    pooling, D = _built(subject), subject.width
    alone = pooling(torch.zeros(1, 0, D, dtype=subject.dtype))
    x = torch.randn(3, 4, D, dtype=subject.dtype, requires_grad=True)
    mask = torch.tensor([[True] * 4, [False] * 4, [False, True, False, False]])
    y = pooling(x, mask=mask)
    _near(y[1:2], alone, subject, "for a bag of padding alone, from one of no instance")
    _near(y[1], pooling.reference(x[0, :0]), subject, "for an empty bag, from `reference`")
    (gradient,) = torch.autograd.grad(y.sum(), x)
    if not bool(y.isfinite().all()) or not bool(gradient.isfinite().all()):
        raise ContractError("Beside an empty bag, an output or a gradient is not finite.")


def check_half(subject: Subject) -> None:
    """Cast to bfloat16 it stays near what the reference computes in float64 from the same numbers."""
    pooling = _built(subject, torch.bfloat16)
    exact = copy.deepcopy(pooling).double()
    x, mask = _bags(subject)
    x = x.bfloat16()
    found = pooling(x, mask=mask)
    if found.dtype != torch.bfloat16:
        raise ContractError(f"In bfloat16 it gives {found.dtype}.")
    want = torch.stack([exact.reference(x[b, :n].double()) for b, n in enumerate(_SIZES)])
    gap = float((found.double() - want).detach().norm() / want.detach().norm())
    if not gap < _HALF:
        raise ContractError(f"In bfloat16 its output is {gap:.2g} of its norm from that of float64.")


def check_refusals(subject: Subject) -> None:
    """Other widths, one bag without its axis, whole numbers, masks that do not fit; sizes that are none."""
    pooling, D = _built(subject), subject.width
    x = torch.randn(2, 5, D, dtype=subject.dtype)
    cases: dict[str, tuple[Tensor, Tensor | None]] = {
        "instances of another width": (x[..., :-1], None),
        "a bag without the axis of bags": (x[0], None),
        "whole numbers": (x.long(), None),
        "a mask of another length": (x, torch.ones(2, 4, dtype=torch.bool)),
        "a mask of numbers": (x, torch.ones(2, 5)),
    }
    for what, (bags, mask) in cases.items():
        refused(what, lambda bags=bags, mask=mask: pooling(bags, mask=mask), ShapeError)  # type: ignore[misc]
    refused("a width of 0", lambda: subject.cls(0, **subject.arguments), ShapeError)


def check_costs(subject: Subject) -> None:
    """Products of matrices for one bag, and bytes of parameters, are those of the card's formulas (float32)."""
    if subject.card.cost is None:
        raise CardError(f"The card of {subject.card.slug} states no costs, so there is nothing to hold it to.")
    pooling, N = _built(subject, torch.float32), 40
    values = catalogue.variables(subject.cls, subject.arguments, D=subject.width, N=N)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # of fused kernels it knows no products
        pooling(torch.randn(1, N, subject.width, requires_grad=True))
    nbytes = sum(p.numel() * p.element_size() for p in pooling.parameters())
    cost = subject.card.cost
    for what, measured, text in (("flops", counter.get_total_flops(), cost.flops), ("state", nbytes, cost.state)):
        if measured != (promised := formula.evaluate(text, values)):
            raise ContractError(f"{what} is {measured} at D = {subject.width}, N = {N}; '{text}' gives {promised:g}.")


def _built(subject: Subject, dtype: torch.dtype | None = None) -> Pooling:
    """In eval mode, parameters off their start values, among which zeros and ones hide mistakes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(subject.seed)
        made = subject.cls(subject.width, **subject.arguments)
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    made.to(dtype or subject.dtype)
    assert isinstance(made, Pooling)
    return made.eval()


def _bags(subject: Subject) -> tuple[Tensor, Tensor]:
    """Bags of `_SIZES` instances, padded on the right: [B, N, D] and bool [B, N]."""
    mask = torch.arange(max(_SIZES)) < torch.tensor(_SIZES).unsqueeze(1)
    return torch.randn(*mask.shape, subject.width, dtype=subject.dtype).masked_fill(~mask.unsqueeze(-1), 0.0), mask


def _near(found: Tensor, want: Tensor, subject: Subject, what: str) -> None:
    tolerance = subject.tolerance if found.dtype == torch.float64 else 5e-4
    gap = float((found - want).detach().abs().max() / want.detach().abs().max().clamp_min(1.0))
    if not gap <= tolerance:
        raise ContractError(f"Differs by {gap:.1e} {what}.")


CONTRACT = (
    Check("arguments", check_arguments),
    Check("shapes", check_shapes),
    Check("order", check_order),
    Check("padding", check_padding),
    Check("reference", check_reference),
    Check("empty", check_empty),
    Check("half", check_half),
    Check("refusals", check_refusals),
    Check("costs", check_costs, costs=True),
)
