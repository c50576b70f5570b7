"""Thinking: descent on any energy, with samples, selection, refusal of bad steps, and a trace."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from instar.errors import DivergedError, EnergyError, ShapeError
from instar.inference.descent import Energy, identity, noise_like, probe, share, slope, spread, value
from instar.interfaces import Trace

Select = Literal["lowest", "drop", "highest"]
Start = Tensor | Callable[[torch.Generator | None], Tensor]


class Moment(NamedTuple):
    """Where thinking stands after some steps: what can be used if time is up."""

    state: Tensor
    energies: Tensor
    """[*N]."""
    accepted: Tensor
    """bool [*N]: whether the last step was made."""


@dataclass(frozen=True)
class Thinker:
    r"""z ← P(z) − a ∇E(P(z)), repeated; then the sample of lowest energy.

    Args:
        steps: how often. step_size: a, a number or a tensor that broadcasts to the energies [*N].
        noise: standard deviation of N(0, 1) added to the state before a step (Langevin); noise_at: every step, or the first.
        samples: M starts a sample, of which `select` keeps that of lowest energy, of largest drop of energy, or (a control) of
            highest energy, for each sample by itself.
        accept: a step is made only where the energy does not rise; where it would, the step size is halved for that sample.
            Energies of one landscape then never rise.
        tolerance: a sample stops when a step lowers its energy by less than this; 0 never stops.
        landscapes: where an energy is given as a list, one a step as in training: further steps stay on the `last` one, or
            all steps are divided evenly among `all`.
        probe: check once that no sample's energy depends on another's candidate (a backward pass more).

    Shapes: states [*N, …], energies [*N]. Cost: steps × (energy and gradient) + one energy, times samples; with noise one
    energy a step more. Raises ShapeError for settings; EnergyError for energies that have no gradient, couple samples or are not
    finite at the start; DivergedError for a step size that leads to infinity where `accept` is off.
    Sources: Gladstone et al. 2025 (arXiv 2507.02092). Halving a refused step is ours: a step that was refused would be refused
    for ever.
    """

    steps: int = 2
    step_size: float | Tensor = 1.0
    noise: float = 0.0
    noise_at: Literal["every", "first"] = "every"
    samples: int = 1
    select: Select = "lowest"
    accept: bool = False
    tolerance: float = 0.0
    landscapes: Literal["last", "all"] = "last"
    probe: bool = True

    def __post_init__(self) -> None:
        size = float(torch.as_tensor(self.step_size).min())
        if self.steps < 0 or self.samples < 1:
            raise ShapeError(f"Thinking takes steps ≥ 0 and samples ≥ 1; received {self.steps} and {self.samples}.")
        if not size >= 0 or min(self.noise, self.tolerance) < 0:
            raise ShapeError(
                f"Step size, noise and tolerance are not negative; received {self.step_size}, {self.noise} and {self.tolerance}."
            )
        chosen = {"noise_at": ("every", "first"), "select": ("lowest", "drop", "highest"), "landscapes": ("last", "all")}
        for name, known in chosen.items():
            if getattr(self, name) not in known:
                raise ShapeError(f"{name} must be one of {', '.join(known)}; received {getattr(self, name)!r}.")

    def __call__(
        self,
        energy: Energy | Sequence[Energy],
        start: Start,
        *,
        point: Callable[[Tensor], Tensor] = identity,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Trace]:
        """The state after thinking, and its trace.

        energy: of candidates, or one for each landscape. start: a state, or a function of a generator that draws one for each
        sample. point: P, which makes a state the candidate whose energy is taken (softmax, for states that are logits).
        """
        if self.samples > 1 and isinstance(start, Tensor) and self.noise == 0:
            raise ShapeError("Several samples from one fixed start without noise are all the same: draw the start, or add noise.")
        best: tuple[Tensor, Trace] | None = None
        last = []
        for _ in range(self.samples):
            found = self._once(energy, start, point, generator)
            assert found[1].energies is not None
            last.append(found[1].energies[-1])
            best = found if best is None else _better(best, found, self.select)
        assert best is not None
        if self.samples == 1:
            return best
        return best[0], Trace(best[1].steps, best[1].energies, best[1].changes, torch.stack(last), best[1].notes)

    def anytime(
        self,
        energy: Energy | Sequence[Energy],
        start: Start,
        *,
        point: Callable[[Tensor], Tensor] = identity,
        generator: torch.Generator | None = None,
    ) -> Iterator[Moment]:
        """The start and what stands after every step of one sample: break off when time is up, the last moment is an answer."""
        landscapes = [energy] if callable(energy) else list(energy)
        if not landscapes:
            raise EnergyError("There is no energy to think with: the list is empty.")
        state = (start if isinstance(start, Tensor) else start(generator)).detach()
        if self.probe:
            probe(landscapes[0], point(state))
        ahead = slope(landscapes[0], point(state)) if self.steps else None
        here = _energies(landscapes[0], point(state)) if ahead is None else ahead.energies
        if not bool(here.isfinite().all()):
            raise EnergyError("Energies at the start are not finite: the energy overflows there, or the start does.")
        active = torch.ones_like(here, dtype=torch.bool)
        size = torch.as_tensor(self.step_size, dtype=state.dtype, device=state.device).expand(here.shape)
        yield Moment(state, here, active)
        for number in range(self.steps):
            landscape = self._landscape(landscapes, number)
            now = slope(landscape, point(state)) if ahead is None else ahead
            here = now.energies
            if self.noise > 0 and (self.noise_at == "every" or number == 0):
                now = slope(landscape, point(state + self.noise * noise_like(state, generator)))
            proposal = now.point - spread(size, state) * now.gradient
            stays = number + 1 < self.steps and self._landscape(landscapes, number + 1) is landscape
            ahead = slope(landscape, point(proposal)) if stays else None  # what the next step needs tells about this one
            after = _energies(landscape, point(proposal)) if ahead is None else ahead.energies
            finite = after.isfinite() & proposal.reshape(*after.shape, -1).isfinite().all(-1)
            lost = active & ~finite  # of those that have stopped no step is made
            if not self.accept and bool(lost.any()):
                raise DivergedError(
                    f"Step {number + 1} of size {float(size.max()):g} left the finite numbers for {int(lost.sum())} of "
                    f"{finite.numel()} samples. Use a smaller step_size, or accept=True, which refuses such steps."
                )
            made = active & finite & (after <= here) if self.accept else active
            size = torch.where(active & ~made, 0.5 * size, size)
            if self.tolerance > 0:
                active = active & ~(made & (here - after < self.tolerance))
            state = torch.where(spread(made, state), proposal, state).detach()
            yield Moment(state, torch.where(made, after, here), made)
            if not bool(active.any()):
                return
            if not bool(made.all()):
                ahead = None

    def _landscape(self, landscapes: Sequence[Energy], number: int) -> Energy:
        count = len(landscapes)
        return landscapes[min(number, count - 1) if self.landscapes == "last" else number * count // max(self.steps, count)]

    def _once(
        self,
        energy: Energy | Sequence[Energy],
        start: Start,
        point: Callable[[Tensor], Tensor],
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Trace]:
        moments = list(self.anytime(energy, start, point=point, generator=generator))
        energies = torch.stack([moment.energies for moment in moments])
        made = torch.stack([moment.accepted for moment in moments[1:]]) if len(moments) > 1 else energies[:0] > 0
        taken = made.long().sum(0)
        changes = [_change(a.state, b.state, energies.dim() - 1) for a, b in itertools.pairwise(moments)]
        return moments[-1].state, Trace(
            taken,
            energies,
            torch.stack(changes) if changes else energies[:0],
            None,
            self._notes(energies, made),
        )

    def _notes(self, energies: Tensor, made: Tensor) -> tuple[str, ...]:
        notes = []
        if self.accept and len(made):
            refused = 1 - float(made.double().mean())
            if not bool(made[0].any()):
                notes.append(
                    f"The step size diverges: every first step of size {float(torch.as_tensor(self.step_size).max()):g} was "
                    f"refused, and {refused:.0%} of all; it was halved each time. Start with a smaller one."
                )
            elif refused > 0.5:
                notes.append(f"{refused:.0%} of the steps were refused: a smaller step_size wastes fewer.")
        elif len(made) and (rose := float((energies[-1] > energies[0]).double().mean())) > 0.5:
            notes.append(
                f"Energies rose for {rose:.0%} of the samples: the step size may be too large; accept=True refuses that."
            )
        return tuple(notes)


@torch.no_grad()
def _energies(energy: Energy, point: Tensor) -> Tensor:
    return value(energy, point).detach()


def _change(before: Tensor, after: Tensor, axes: int) -> Tensor:
    """‖z′ − z‖ / ‖z‖ by sample."""
    moved, length = (after - before), before
    if before.dim() > axes:
        moved, length = moved.flatten(axes).norm(dim=-1), before.flatten(axes).norm(dim=-1)
    return share(moved.abs(), length.abs())


def _better(one: tuple[Tensor, Trace], two: tuple[Tensor, Trace], select: Select) -> tuple[Tensor, Trace]:
    """Of two samples the one to keep, for each item by itself."""
    a, b = one[1], two[1]
    assert a.energies is not None
    assert b.energies is not None
    assert a.changes is not None
    assert b.changes is not None
    length = max(len(a.energies), len(b.energies))
    ea, eb = (_extended(e, length) for e in (a.energies, b.energies))
    second = {
        "lowest": eb[-1] < ea[-1],
        "highest": eb[-1] > ea[-1],
        "drop": eb[0] - eb[-1] > ea[0] - ea[-1],
    }[select]
    changes = torch.where(second, _extended(b.changes, length - 1, 0.0), _extended(a.changes, length - 1, 0.0))
    kept = Trace(
        torch.where(second, b.steps, a.steps),
        torch.where(second, eb, ea),
        changes,
        None,
        tuple(dict.fromkeys((*a.notes, *b.notes))),
    )
    return torch.where(spread(second, one[0]), two[0], one[0]), kept


def _extended(rows: Tensor, length: int, fill: float | None = None) -> Tensor:
    """A trace that stopped early, as long as the other's: its last row (or a number) goes on."""
    if len(rows) == length:
        return rows
    tail = rows[-1:] if fill is None else torch.full_like(rows.new_zeros(1, *rows.shape[1:]), fill)
    return torch.cat([rows, tail.expand(length - len(rows), *rows.shape[1:])])
