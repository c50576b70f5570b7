"""Energy-Based Transformer for tokens: the next one is found by descent on the energy of a distribution over the vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.errors import ShapeError
from instar.inference.descending import TwoStream
from instar.inference.descent import Energy, identity, noise_like
from instar.inference.energy_transformer import EnergyTransformer, Observed
from instar.inference.norms import Norm
from instar.inference.replay import ReplayBuffer
from instar.inference.step_size import StepSize
from instar.inference.thinker import Thinker
from instar.inference.training import Unrolled
from instar.inference.two_stream import Activation, Conditioning
from instar.interfaces import Trace

IGNORED = -100
_SURE = 0.9


class Ebt(TwoStream):
    r"""z ← p − a ∇_p Σ E(x, W p),  p = softmax(z / τ): logits of every next token, found by descent.

    Args:
        width, depth, heads, hidden, norm, activation, conditioning, landscapes: of `EnergyTransformer`. vocabulary: V.
        steps: of the inner loop in training, and of a plain call; random_steps: up to so many more, drawn for each batch of
            training alone.
        alpha: step size a; learn_alpha: learn it, at 3 a times the rate of all else, without decay; never below 1e-4.
        random_alpha: r, in training a is drawn by position from [a / r, r a]; 1 leaves it.
        noise: standard deviation added to z before each step of training. detach, truncate, clamp_gradient, clamp_state: of
            `Unrolled`. last_only: the loss is that of the last step alone, otherwise the mean over steps.
        start: z₀ is N(0, 1), zeros, or puts 0.9 on the last token. step_space: prob steps from p by the gradient with respect to
            p, as the authors' code; logit from z by that with respect to z, as their text reads.
        tied: a candidate is p times the token embedding, otherwise it has a matrix of its own.
        buffer: sequences kept with their last states; half a batch of them is appended to a batch of training.
        temperature: τ. label_smoothing: at the first step, falling linearly to 0 at the last. contrastive: weight of
            CE(−[E_true, E_predicted]).

    System 1 are the defaults, System 2 is the preset `s2`. Shapes: tokens int64 [B, T] -> logits [B, T, V]. Complexity: a
    step costs two passes over candidates alone; the observed stream is computed once for each landscape. Raises ShapeError.
    Differs from the authors' code: see the card. Source: Gladstone et al. 2025 (arXiv 2507.02092).
    """

    def __init__(
        self,
        width: int = 64,
        *,
        vocabulary: int = 257,
        depth: int = 2,
        heads: int = 4,
        hidden: int = 0,
        norm: Norm = "rms",
        activation: Activation = "silu",
        conditioning: Conditioning = "time_embed",
        landscapes: int = 2,
        steps: int = 2,
        random_steps: int = 0,
        alpha: float = 500.0,
        learn_alpha: bool = True,
        random_alpha: float = 1.0,
        noise: float = 0.0,
        detach: bool = True,
        truncate: bool = False,
        last_only: bool = False,
        start: Literal["noise", "zeros", "last"] = "noise",
        step_space: Literal["prob", "logit"] = "prob",
        tied: bool = False,
        buffer: int = 0,
        temperature: float = 1.0,
        label_smoothing: float = 0.0,
        contrastive: float = 0.0,
        clamp_gradient: float = 0.0,
        clamp_state: float = 0.0,
    ) -> None:
        super().__init__()
        if min(vocabulary, steps) < 1 or min(random_steps, noise, buffer, label_smoothing, contrastive) < 0:
            raise ShapeError(
                "Ebt takes vocabulary and steps of at least 1, and no negative random_steps, noise, buffer or weights."
            )
        if start not in ("noise", "zeros", "last") or step_space not in ("prob", "logit") or temperature <= 0:
            raise ShapeError(f"Unknown start {start!r} or step_space {step_space!r}, or temperature {temperature} not above 0.")
        self.width, self.vocabulary, self.steps, self.random_steps = width, vocabulary, steps, random_steps
        self.noise, self.last_only, self.start, self.step_space = noise, last_only, start, step_space
        self.temperature, self.label_smoothing, self.contrastive = temperature, label_smoothing, contrastive
        self.embedding = nn.Embedding(vocabulary, width)  # N(0, 1)
        self.candidate = None if tied else nn.Linear(vocabulary, width, bias=False)
        if self.candidate is not None:
            nn.init.xavier_normal_(self.candidate.weight)
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
        self.replay = ReplayBuffer(buffer)

    def observe(self, x: Tensor, landscape: int = 0, past: Observed | None = None) -> Observed:
        """Keys and values of tokens [B, S], behind what was observed before."""
        if x.dim() != 2 or x.is_floating_point():
            raise ShapeError(f"Ebt reads integer tokens [B, T]; received {tuple(x.shape)} of {x.dtype}.")
        return self.transformer.observe(self.embedding(x), landscape, past)

    def embed(self, p: Tensor) -> Tensor:
        """Candidates [B, N, V], distributions, as vectors [B, N, D]."""
        return p @ self.embedding.weight if self.candidate is None else self.candidate(p)

    def energy(self, observed: Observed, *, first: int = 0) -> Energy:
        """The energy that is descended: of p, or in logit space of z. Candidates follow observed positions from `first` on."""
        if self.step_space == "prob":
            return lambda p: self.transformer.energies(self.embed(p), observed, first=first)
        return lambda z: self.transformer.energies(self.embed(self.distribution(z)), observed, first=first)

    def distribution(self, z: Tensor) -> Tensor:
        """p = softmax(z / τ)."""
        return (z / self.temperature).softmax(-1)

    def point(self, z: Tensor) -> Tensor:
        """From where a step is made."""
        return self.distribution(z) if self.step_space == "prob" else identity(z)

    def first(self, tokens: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """z₀ [B, S, V] behind every token."""
        like = self.embedding.weight.new_zeros(*tokens.shape, self.vocabulary)
        if self.start == "zeros":
            return like
        if self.start == "last":
            p = _SURE * F.one_hot(tokens, self.vocabulary).to(like) + (1 - _SURE) / self.vocabulary
            return self.temperature * p.log()
        return noise_like(like, generator)

    def think(
        self,
        tokens: Tensor,
        *,
        generator: torch.Generator | None = None,
        step_size: float = 0.0,
        past: list[Observed] | None = None,
        **settings: Any,
    ) -> tuple[Tensor, Trace]:
        """Logits [B, N, V] behind tokens [B, N] and the trace; `settings` are those of `Thinker` (steps, samples, accept, …).

        step_size: 0 takes the trained a, 0 < s < 1 multiplies it, s ≥ 1 replaces it. past: what was observed before by
        `observe`, one for each landscape; the list is brought up to date, so that the next call goes on behind these tokens.
        """
        a = float(self.step_size.value.detach())
        size = a if step_size == 0 else step_size * a if 0 < step_size < 1 else step_size
        thinker = Thinker(**{"steps": self.steps, "probe": False, **settings, "step_size": size})
        with torch.no_grad():
            observed = self.observe_landscapes(tokens, past)
            energies = [self.energy(one, first=one.length - tokens.shape[1]) for one in observed]
            states, trace = thinker(energies, lambda g: self.first(tokens, g), point=self.point, generator=generator)
            return states / self.temperature, trace

    def predict(self, x: Tensor, *, steps: int, generator: torch.Generator | None = None) -> tuple[Tensor, Trace]:
        """Logits [B, T, V] after so many steps, further ones on the last landscape."""
        return self.think(x, steps=steps, generator=generator)

    def generate(
        self,
        prompts: Tensor,
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
        **think: Any,
    ) -> Tensor:
        """Continue prompts [B, T] by [B, max_new_tokens]: append a token and think about the next one."""
        found = list(self.stream(prompts, max_new_tokens, temperature, generator, **think))
        return torch.stack(found, 1) if found else prompts.new_zeros(len(prompts), 0)

    def stream(
        self,
        prompts: Tensor,
        max_new_tokens: int,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
        **think: Any,
    ) -> Iterator[Tensor]:
        """New tokens [B], one by one; `think` as of `think`."""
        from instar.models.generation import choose, require_sampling

        if prompts.dim() != 2 or prompts.shape[1] == 0:
            raise ShapeError(f"generate expects prompts [B, T ≥ 1]; received {tuple(prompts.shape)}.")
        require_sampling(temperature, max_new_tokens)
        past: list[Observed] = []
        with torch.no_grad():
            if prompts.shape[1] > 1:
                past = [self.observe(prompts[:, :-1], n) for n in range(self.transformer.landscapes)]
        token = prompts[:, -1:]
        for _ in range(max_new_tokens):
            if not past:
                past = [self._empty(len(prompts), n) for n in range(self.transformer.landscapes)]
            logits, _ = self.think(token, past=past, generator=generator, **think)
            token = choose(logits[:, -1], temperature, None, generator).unsqueeze(1)
            yield token.squeeze(1)

    @torch.no_grad()
    def _empty(self, batch: int, landscape: int) -> Observed:
        return self.observe(torch.zeros(batch, 0, dtype=torch.int64, device=self.embedding.weight.device), landscape)

    def loss(self, x: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy of the states as logits, mean over counted positions (and steps)."""
        fresh, z = len(x), self.first(x)
        if self.training and (rows := self.replay.draw(-(-fresh // 2), x.shape[1:])) is not None:
            x, target, z = (torch.cat(pair) for pair in zip((x, target, z), rows, strict=True))
        steps = self.draw_steps()
        observed = self.observe_steps(x, steps)
        energies = [self.energy(one) for one in observed]
        size = self.step_size(x.shape, random=self.training).unsqueeze(-1)
        states, _ = self.unrolled(energies, z, size, point=self.point, noise=self.noise if self.training else 0.0)
        if self.training and self.replay.rows.maxlen:
            self.replay.write(x[:fresh], target[:fresh], states[-1][:fresh])
        chosen = [len(states) - 1] if self.last_only else range(len(states))
        total = torch.stack([self._cross_entropy(states[n], target, n, steps) for n in chosen]).mean()
        if self.contrastive > 0:
            total = total + self.contrastive * self._contrast(observed[-1], states[-1], target)
        return total

    def _cross_entropy(self, z: Tensor, target: Tensor, number: int, steps: int) -> Tensor:
        smoothing = self.label_smoothing * (1 - number / (steps - 1)) if steps > 1 else 0.0
        logits = (z / self.temperature).flatten(0, -2)
        return F.cross_entropy(logits, target.flatten(), ignore_index=IGNORED, label_smoothing=smoothing)

    def _contrast(self, observed: Observed, z: Tensor, target: Tensor) -> Tensor:
        """The true token's energy is to be below that of what was predicted."""
        real = target != IGNORED
        true = F.one_hot(target.masked_fill(~real, 0), self.vocabulary).to(z)
        both = [self.transformer.energies(self.embed(p), observed) for p in (true, self.distribution(z).detach())]
        return F.softplus(both[0] - both[1])[real].mean()

    def example(self, batch: int, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Ten random tokens a row and their successors."""
        tokens = torch.randint(self.vocabulary, (batch, 11), generator=generator)
        return tokens[:, :-1], tokens[:, 1:]
