"""Energies, and one step downhill on them: the piece that thinking and training share."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from instar.errors import EnergyError

Energy = Callable[[Tensor], Tensor]
"""Candidates [*N, …] -> energies [*N], one a sample, lower is better. A function or a module; N may be several axes (rows and
positions). No sample's energy may depend on another sample's candidate: then the gradient of the sum is every sample's own."""


class Slope(NamedTuple):
    """An energy and what it says of the direction, at one point."""

    point: Tensor
    """[*N, …] where the energy was taken."""
    energies: Tensor
    """[*N]."""
    gradient: Tensor
    """[*N, …], d(Σ energies) / d point."""


def identity(state: Tensor) -> Tensor:
    """The state is the candidate."""
    return state


def value(energy: Energy, point: Tensor) -> Tensor:
    """Energies [*N] of candidates. Raises EnergyError for what is not one number a sample."""
    found = energy(point)
    if not isinstance(found, Tensor) or not found.is_floating_point():
        raise EnergyError(f"An energy must return a floating tensor; received {type(found).__name__}.")
    if found.dim() == 0 and point.dim() > 0:
        raise EnergyError(
            "The energy is one number for the whole batch: it sums or averages over samples and couples them. Return one a "
            f"sample, [*N] of candidates [*N, …]; a single sample is candidates [1, …]. Candidates were {list(point.shape)}."
        )
    if found.shape != point.shape[: found.dim()]:
        raise EnergyError(
            f"Energies must be one a sample, the leading axes of the candidates {list(point.shape)}; received "
            f"{list(found.shape)}."
        )
    return found


def slope(energy: Energy, point: Tensor, *, create_graph: bool = False) -> Slope:
    """Energies and their gradient at candidates [*N, …]; with `create_graph` both can be trained through.

    Raises EnergyError for an energy that has no gradient, or is called in inference mode.
    """
    if torch.is_inference_mode_enabled():
        raise EnergyError("Thinking takes gradients, which torch.inference_mode forbids: use torch.no_grad around it.")
    with torch.enable_grad():
        at = point if create_graph and point.requires_grad else point.detach().requires_grad_()
        energies = value(energy, at)
        if not energies.requires_grad:
            raise EnergyError(
                "The energy is not differentiable: its result has no graph (a detach, no_grad, argmax, rounding or numpy inside)."
            )
        (gradient,) = torch.autograd.grad(energies.sum(), at, create_graph=create_graph, allow_unused=True)
        if gradient is None:
            raise EnergyError("The energy does not depend on the candidate, or not differentiably: it has no gradient there.")
    return Slope(at, energies, gradient) if create_graph else Slope(point.detach(), energies.detach(), gradient)


def spread(numbers: Tensor, like: Tensor) -> Tensor:
    """Numbers by sample [*N] with as many axes as `like` [*N, …]."""
    return numbers.reshape(*numbers.shape, *(1 for _ in range(like.dim() - numbers.dim())))


def share(moved: Tensor, length: Tensor) -> Tensor:
    """‖z′ − z‖ / ‖z‖ of two norms; from a z of 0 to anything else it is 1."""
    return moved / torch.where(length > 0, length, moved.clamp_min(torch.finfo(moved.dtype).tiny))


def noise_like(state: Tensor, generator: torch.Generator | None) -> Tensor:
    """N(0, 1) of the shape, type and place of a state."""
    return torch.randn(state.shape, generator=generator, dtype=state.dtype, device=state.device)


def probe(energy: Energy, point: Tensor) -> None:
    """Raise EnergyError where a sample's energy depends on another sample's candidate: one backward pass more.

    With signs w_n = ±1, d(Σ w_n e_n) / d y_n must be w_n d(Σ e_n) / d y_n; a coupling breaks that.
    """
    with torch.enable_grad():
        at = point.detach().requires_grad_()
        energies = value(energy, at)
        if energies.numel() < 2 or not energies.requires_grad:
            return
        generator = torch.Generator().manual_seed(0)
        signs = (2 * torch.randint(0, 2, energies.shape, generator=generator) - 1).to(energies)
        signs.view(-1)[0], signs.view(-1)[-1] = -1, 1
        (plain,) = torch.autograd.grad(energies.sum(), at, retain_graph=True, allow_unused=True)
        (signed,) = torch.autograd.grad((signs * energies).sum(), at, allow_unused=True)
    if plain is None or signed is None:
        return
    gap = float((signed - spread(signs, plain) * plain).abs().max())
    scale = float(plain.abs().max())
    if gap > 1e-3 * scale + 1e-12:
        raise EnergyError(
            "The energy couples samples: the gradient of one depends on the others (a mean over the batch, batch norm in "
            f"training mode, attention across rows?). Difference {gap:.2g} at gradients of {scale:.2g}."
        )
