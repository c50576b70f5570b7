"""Seeing everything that a mixer does to an input — outputs, what the final state is worth, gradients — and comparing two.

Ways of running a mixer are functions with the mixer's own signature, so that each can be observed alike: `in_pieces` cuts
the sequence, `apart` runs every row, packed sequence and real token alone, which is what masks and resets have to equal.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from instar.checks.subject import PROBE, Subject
from instar.errors import ContractError
from instar.interfaces import Mixer
from instar.state import State, detach, index_select, leaves, tree_map

Way = Callable[..., tuple[Tensor, State]]
"""(x, state, *, mask, reset) -> (y, state)."""


@dataclass(frozen=True)
class Trace:
    """What one way of running produced."""

    output: Tensor
    """[B, T, D], zero at masked positions."""
    after: Tensor
    """[B, PROBE, D]: outputs of further tokens that continue from the final state (no tokens where states are not carried)."""
    state: State
    gradients: dict[str, Tensor]
    """Of one fixed random projection of the two, by what they are taken with respect to."""


def observe(
    subject: Subject,
    mixer: Mixer,
    way: Way,
    x: Tensor,
    state: State = None,
    *,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
) -> Trace:
    """Run `way` on copies of the inputs, continue from the state it returns, and take all gradients.

    Call it with the same generator state for two ways that are to be compared.
    """
    generator = torch.Generator().manual_seed(subject.seed + 1)
    x = x.detach().clone().requires_grad_()
    state = tree_map(_leaf, state)
    y, final = way(x, state, mask=mask, reset=reset)
    if mask is not None:
        y = y.masked_fill(~mask.unsqueeze(-1), 0.0)
    after = y[:, :0]
    if subject.streaming:
        probe = torch.randn(x.shape[0], PROBE, x.shape[2], generator=generator, dtype=x.dtype)
        after, _ = way(probe, final, mask=None, reset=None)
    wanted: dict[str, Tensor] = {"x": x, **{f"parameter {n}": p for n, p in mixer.named_parameters()}}
    wanted |= {f"initial state leaf {i}": leaf for i, leaf in enumerate(leaves(state)) if leaf.requires_grad}
    loss = _project(y, generator) + _project(after, generator)
    taken = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True) if loss.requires_grad else [None] * len(wanted)
    gradients = {
        name: torch.zeros_like(of) if found is None else found for (name, of), found in zip(wanted.items(), taken, strict=True)
    }
    return Trace(y.detach(), after.detach(), detach(final), gradients)


def _leaf(leaf: Tensor) -> Tensor:
    leaf = leaf.detach().clone()
    return leaf.requires_grad_() if leaf.is_floating_point() else leaf


def _project(y: Tensor, generator: torch.Generator) -> Tensor:
    return (y * torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y)).sum()


def same_trace(subject: Subject, got: Trace, want: Trace, what: str, because: str, tolerance: float | None = None) -> None:
    """Outputs, later outputs and gradients agree."""
    tolerance = tolerance or subject.tolerance
    same(got.output, want.output, tolerance, f"{what}: the output", because)
    same(got.after, want.after, tolerance, f"{what}: the final state (seen in the outputs that continue from it)", because)
    for name, gradient in want.gradients.items():
        same(got.gradients[name], gradient, tolerance, f"{what}: the gradient with respect to {name}", because)


def same(got: Tensor, want: Tensor, tolerance: float, what: str, because: str) -> None:
    """Raise ContractError unless the tensors agree within `tolerance` of the larger of 1 and the largest value."""
    if got.shape != want.shape:
        raise ContractError(f"{what} has the shape {list(got.shape)}, expected {list(want.shape)}. {because}")
    if not got.numel():
        return
    got, want = got.detach(), want.detach()
    finite(got, what, because)
    difference = (got.double() - want.double()).abs()
    allowed = tolerance * max(1.0, float(want.abs().max()))
    worst = int(difference.argmax())
    largest = float(difference.flatten()[worst])
    if largest <= allowed:
        return
    hint = ""
    if got.dtype == torch.float64 and largest < 1e4 * allowed:
        hint = " So small a difference in float64 often means that something inside computes in float32."
    raise ContractError(f"{what} differs by {largest:.1e} (allowed {allowed:.0e}) at {place(worst, got)}. {because}{hint}")


def finite(values: Tensor, what: str, because: str) -> None:
    """Raise ContractError for NaN and infinities."""
    bad = (~torch.isfinite(values)).flatten().nonzero()
    if len(bad):
        first = int(bad[0])
        raise ContractError(f"{what} is {float(values.flatten()[first])} at {place(first, values)}. {because}")


def place(flat: int, tensor: Tensor) -> str:
    """A flat index in words: row and token for activations, the index otherwise."""
    index = [int(i) for i in torch.unravel_index(torch.tensor(flat), tensor.shape)]
    return f"row {index[0]}, token {index[1]}" if len(index) == 3 else f"index {index}" if index else "its only entry"


def in_pieces(way: Way, cuts: Sequence[int]) -> Way:
    """The same tokens in several calls, cut before the positions `cuts`."""

    def run(x: Tensor, state: State = None, *, mask: Tensor | None = None, reset: Tensor | None = None) -> tuple[Tensor, State]:
        outputs = []
        for begin, end in itertools.pairwise([0, *(c for c in cuts if c < x.shape[1]), x.shape[1]]):
            part = slice(begin, end)
            y, state = way(x[:, part], state, mask=_cut(mask, part), reset=_cut(reset, part))
            outputs.append(y)
        return torch.cat(outputs, dim=1), state

    return run


def apart(way: Way) -> Way:
    """Each row alone, each packed sequence alone, real tokens only: what batches, resets and masks have to equal."""

    def one(x: Tensor, state: State, mask: Tensor | None, reset: Tensor | None) -> tuple[Tensor, State]:
        T = x.shape[1]
        starts = [] if reset is None else reset[0].nonzero().flatten().tolist()
        y = torch.zeros_like(x)
        for begin, end in itertools.pairwise([0, *starts, T]):
            if begin in starts:
                state = None
            real = torch.arange(begin, end)
            if mask is not None:
                real = real[mask[0, begin:end]]
            if not len(real):
                continue
            part, state = way(x[:, real], state, mask=None, reset=None)
            y = y.index_copy(1, real, part)
        return y, state

    def run(x: Tensor, state: Any = None, *, mask: Tensor | None = None, reset: Tensor | None = None) -> tuple[Tensor, Any]:
        outputs, states = [], []
        for b in range(x.shape[0]):
            row = slice(b, b + 1)
            own = state[b] if isinstance(state, _Rows) else index_select(state, torch.tensor([b]))
            y, after = one(x[row], own, None if mask is None else mask[row], None if reset is None else reset[row])
            outputs.append(y)
            states.append(after)
        return torch.cat(outputs), _Rows(states)

    return run


class _Rows(list[Any]):
    """States of single rows."""


def _cut(flags: Tensor | None, part: slice) -> Tensor | None:
    return None if flags is None else flags[:, part]
