"""Energy-Based World Model: the next state of a sequence of vectors is found by descent on an energy of past and candidate."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.errors import ShapeError
from instar.inference.descending import TwoStream
from instar.inference.descent import Energy, noise_like
from instar.inference.energy_transformer import EnergyTransformer, Observed
from instar.inference.norms import Norm
from instar.inference.regression import random_walks
from instar.inference.step_size import StepSize
from instar.inference.thinker import Start, Thinker
from instar.inference.training import Unrolled
from instar.inference.two_stream import Activation, Conditioning
from instar.interfaces import Trace

EnergyLoss = Literal["none", "mse", "l1", "smooth_l1"]
_SHARPNESS = 7.0


class Ebwm(TwoStream):
    r"""c ← c − a ∇_c Σ E(f_1 … f_t, c),  c_t the candidate for f_{t+1}; states are vectors, standardised by channel.

    Args:
        width, depth, heads, hidden, norm, activation, conditioning, landscapes: of `EnergyTransformer`. inputs: channels of a
            state; outputs: the same (a state is predicted). length: accepted for the problems' sake; positions are rotary.
        steps, alpha, learn_alpha, random_alpha, random_steps: as of `Ebt`. noise: standard deviation added to the *projected*
            candidate in training, not accumulated in c. start: c₀ is N(0, 1), the last observed state, or zeros.
        residual: targets are differences to the last state. last_only: only the last step's loss. detach, truncate,
            clamp_gradient (9 in the older code), clamp_state: of `Unrolled`.
        energy_loss: also regress E on a distance in [0, 1], 1 − exp(−7 (1 − cos)), of prediction and truth, with weight
            `energy_weight`, and hold it to [0, 1].

    Shapes: states [B, T, F] -> next states [B, T, F]. Complexity: as of `Ebt`. Raises ShapeError.
    Source: Gladstone et al. 2024 (arXiv 2406.08862).
    """

    def __init__(
        self,
        width: int = 64,
        *,
        inputs: int = 6,
        outputs: int | None = None,
        length: int = 0,
        depth: int = 2,
        heads: int = 4,
        hidden: int = 0,
        norm: Norm = "rms",
        activation: Activation = "silu",
        conditioning: Conditioning = "none",
        landscapes: int = 1,
        steps: int = 2,
        random_steps: int = 0,
        alpha: float = 30_000.0,
        learn_alpha: bool = True,
        random_alpha: float = 1.0,
        noise: float = 0.0,
        start: Literal["noise", "last", "zeros"] = "noise",
        residual: bool = False,
        detach: bool = True,
        truncate: bool = False,
        last_only: bool = False,
        clamp_gradient: float = 0.0,
        clamp_state: float = 0.0,
        energy_loss: EnergyLoss = "none",
        energy_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if min(inputs, steps) < 1 or min(random_steps, noise, energy_weight) < 0 or outputs not in (None, inputs):
            raise ShapeError("Ebwm takes inputs and steps of at least 1, no negative weights, and predicts states of its inputs.")
        if start not in ("noise", "last", "zeros") or energy_loss not in ("none", "mse", "l1", "smooth_l1"):
            raise ShapeError(f"Unknown start {start!r} or energy_loss {energy_loss!r}.")
        self.width, self.inputs, self.steps, self.random_steps, self.noise = width, inputs, steps, random_steps, noise
        self.start, self.residual, self.last_only = start, residual, last_only
        self.energy_loss, self.energy_weight = energy_loss, energy_weight
        self.project = nn.Linear(inputs, width)
        nn.init.xavier_normal_(self.project.weight)
        self.transformer = EnergyTransformer(
            width,
            depth,
            heads,
            hidden=hidden,
            norm=norm,
            activation=activation,
            conditioning=conditioning,
            landscapes=landscapes,
        )
        self.step_size = StepSize(alpha, learn=learn_alpha, spread=random_alpha)
        self.unrolled = Unrolled(detach, truncate, clamp_gradient, clamp_state)

    def observe(self, x: Tensor, landscape: int = 0, past: Observed | None = None) -> Observed:
        """Keys and values of states [B, T, F], behind what was observed before."""
        if x.dim() != 3 or x.shape[2] != self.inputs:
            raise ShapeError(f"Expected states [B, T, {self.inputs}]; received {list(x.shape)}.")
        return self.transformer.observe(self.project(x), landscape, past)

    def energy(self, observed: Observed, *, first: int = 0, noise: float = 0.0) -> Energy:
        """Energies of candidates [B, N, F] behind observed positions from `first` on."""

        def energies(c: Tensor) -> Tensor:
            y = self.project(c)
            return self.transformer.energies(y + noise * torch.randn_like(y) if noise else y, observed, first=first)

        return energies

    def first(self, states: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """c₀ [B, T, F] behind every state."""
        if self.start == "noise":
            return noise_like(states, generator)
        return torch.zeros_like(states) if self.start == "zeros" or self.residual else states.clone()

    def think(
        self,
        states: Tensor,
        *,
        generator: torch.Generator | None = None,
        past: list[Observed] | None = None,
        **settings: Any,
    ) -> tuple[Tensor, Trace]:
        """Next states [B, N, F] behind states [B, N, F], and the trace with their energies; `settings` as of `Thinker`.

        past: one `Observed` for each landscape, brought up to date: the next call goes on behind these states.
        """
        thinker = Thinker(**{"steps": self.steps, "step_size": float(self.step_size.value.detach()), "probe": False, **settings})
        with torch.no_grad():
            observed = self.observe_landscapes(states, past)
            energies = [self.energy(one, first=one.length - states.shape[1]) for one in observed]
            drawn: Start = (lambda g: self.first(states, g)) if self.start == "noise" else self.first(states)
            c, trace = thinker(energies, drawn, generator=generator)
        return (c + states if self.residual else c), trace

    def predict(self, x: Tensor, *, steps: int, generator: torch.Generator | None = None) -> tuple[Tensor, Trace]:
        """Next states after so many steps."""
        return self.think(x, steps=steps, generator=generator)

    def rollout(
        self, history: Tensor, horizon: int, *, generator: torch.Generator | None = None, **settings: Any
    ) -> tuple[Tensor, Tensor]:
        """The next `horizon` states [B, horizon, F], each observed once predicted, and their energies [B, horizon]."""
        if horizon < 0:
            raise ShapeError(f"horizon is not negative; received {horizon}.")
        past: list[Observed] = []
        states, energies, new = [history[:, :0]], [history.new_zeros(len(history), 0)], history
        for _ in range(horizon):
            c, trace = self.think(new, past=past, generator=generator, **settings)
            assert trace.energies is not None
            new = c[:, -1:]
            states.append(new)
            energies.append(trace.energies[-1, :, -1:])
        return torch.cat(states, 1), torch.cat(energies, 1)

    def loss(self, x: Tensor, target: Tensor) -> Tensor:
        """Smooth L1 between candidates and next states, mean over steps (or of the last), and what energies are held to."""
        observed = self.observe_steps(x, self.draw_steps())
        noise = self.noise if self.training else 0.0
        energies = [self.energy(one, noise=noise) for one in observed]
        size = self.step_size(x.shape[:2], random=self.training).unsqueeze(-1)
        found, _ = self.unrolled(energies, self.first(x), size)
        wanted = target - x if self.residual else target
        real = ~wanted.isnan()
        chosen = found[-1:] if self.last_only else found
        total = torch.stack([F.smooth_l1_loss(c[real], wanted[real]) for c in chosen]).mean()
        if self.energy_loss != "none":
            whole = real.all(-1)
            c = found[-1].detach()
            e = self.energy(observed[-1])(c)[whole]
            total = total + self.energy_weight * self._calibration(e, distance(c[whole], wanted[whole]))
        return total

    def _calibration(self, energies: Tensor, label: Tensor) -> Tensor:
        """The regression of energies on distances, and the penalty for energies outside [0, 1]."""
        errors = {"mse": F.mse_loss, "l1": F.l1_loss, "smooth_l1": F.smooth_l1_loss}
        outside = (-energies).clamp_min(0) + (energies - 1).clamp_min(0)
        return errors[self.energy_loss](energies, label) + outside.mean()

    def example(self, batch: int, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Random walks and their next states."""
        return random_walks(self.project.weight, batch, generator)


def distance(one: Tensor, two: Tensor) -> Tensor:
    """1 − exp(−7 (1 − cos)), in [0, 1]: how far two states [..., F] are apart."""
    return 1 - torch.exp(-_SHARPNESS * (1 - F.cosine_similarity(one, two, dim=-1)).clamp_min(0))
