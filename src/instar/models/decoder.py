"""One decoder for every mixer: pre-norm blocks of mixer × SwiGLU × RMSNorm, a tied head, positions by the mixer's tag."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar import catalogue
from instar.errors import CheckpointError, InstarError, ShapeError
from instar.interfaces import Mixer
from instar.models import checkpoint
from instar.state import State


class DecoderState(NamedTuple):
    """The states of all layers, and how many real tokens each row has seen since its last reset."""

    position: Tensor
    """int64 [B]"""
    layers: tuple[State, ...]


class SwiGLU(nn.Module):
    """W_o (silu(W_g x) ∘ W_i x) (Shazeer 2020, arXiv 2002.05202); hidden width 8/3 D rounded up to a multiple of `multiple`."""

    def __init__(self, width: int, *, multiple: int = 64) -> None:
        super().__init__()
        hidden = multiple * math.ceil(8 * width / 3 / multiple)
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)
        for linear in (self.gate_proj, self.up_proj, self.down_proj):
            nn.init.normal_(linear.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """x ← x + mixer(RMSNorm(x)); x ← x + SwiGLU(RMSNorm(x))."""

    def __init__(self, width: int, mixer: Mixer, multiple: int) -> None:
        super().__init__()
        self.mixer_norm = nn.RMSNorm(width, eps=1e-5)
        self.mixer = mixer
        self.mlp_norm = nn.RMSNorm(width, eps=1e-5)
        self.mlp = SwiGLU(width, multiple=multiple)

    def forward(self, x: Tensor, state: State, mask: Tensor | None, reset: Tensor | None) -> tuple[Tensor, State]:
        mixed, state = self.mixer(self.mixer_norm(x), state, mask=mask, reset=reset)
        x = x + mixed
        return x + self.mlp(self.mlp_norm(x)), state


class Decoder(nn.Module):
    """A causal language model over any token mixer.

    tokens [B, T] → logits [B, T, vocabulary]; logits at t predict token t + 1. Pre-norm blocks (LLaMA-like), final RMSNorm.
    Mixers whose tag says `positions=host` get sinusoidal positions (Vaswani et al. 2017) added to the embeddings, counting
    real tokens since the row's last reset; all others get none.

    Args:
        vocabulary: number of tokens.
        width, depth, heads: D, number of blocks, H.
        mixer: an address of the catalogue (`gla:no_gate`), or a function `build(width, heads=…)` that makes one.
        mixer_arguments: further constructor arguments of the mixer.
        positions: "none" or "host" instead of what the mixer's card says; needed when `mixer` is a function.
        tied: whether the head is the embedding.
        multiple: the hidden width of SwiGLU is rounded up to a multiple of it.

    Raises ShapeError and UnknownNameError. Embeddings start from N(0, 0.02²).
    """

    def __init__(
        self,
        vocabulary: int,
        width: int = 128,
        depth: int = 2,
        mixer: str | Callable[..., Mixer] = "softmax",
        *,
        heads: int = 4,
        mixer_arguments: dict[str, Any] | None = None,
        positions: str | None = None,
        tied: bool = True,
        multiple: int = 64,
    ) -> None:
        super().__init__()
        if vocabulary < 1 or width < 2 or width % 2 or depth < 1:
            raise ShapeError(
                "A decoder expects vocabulary ≥ 1, an even width ≥ 2 and depth ≥ 1; "
                f"received vocabulary={vocabulary}, width={width}, depth={depth}."
            )
        build, tag = _mixer(mixer)
        self.config: dict[str, Any] = {
            "vocabulary": vocabulary,
            "width": width,
            "depth": depth,
            "mixer": mixer if isinstance(mixer, str) else None,
            "heads": heads,
            "mixer_arguments": dict(mixer_arguments or {}),
            "positions": positions,
            "tied": tied,
            "multiple": multiple,
        }
        self.host_positions = (positions or tag) == "host"
        arguments = {"heads": heads, **(mixer_arguments or {})}
        self.embedding = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.blocks = nn.ModuleList(Block(width, build(width, **arguments), multiple) for _ in range(depth))
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.head = nn.Linear(width, vocabulary, bias=False)
        nn.init.normal_(self.head.weight, std=0.02)
        if tied:
            self.head.weight = self.embedding.weight

    def init_state(self, batch: int) -> DecoderState:
        """The state before the first token."""
        position = torch.zeros(batch, dtype=torch.int64, device=self.embedding.weight.device)
        return DecoderState(position, tuple(block.mixer.init_state(batch) for block in self._blocks()))

    def forward(
        self,
        tokens: Tensor,
        state: DecoderState | None = None,
        *,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
    ) -> tuple[Tensor, DecoderState]:
        """Logits and the state after the last token; `mask` and `reset` as in `Mixer.forward`."""
        hidden, state = self.hidden(tokens, state, mask=mask, reset=reset)
        return self.head(hidden), state

    def hidden(
        self,
        tokens: Tensor,
        state: DecoderState | None = None,
        *,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
    ) -> tuple[Tensor, DecoderState]:
        """What the head reads [B, T, D], and the state."""
        if tokens.dim() != 2:
            raise ShapeError(f"tokens must be [B, T]; received {list(tokens.shape)}.")
        state = self.init_state(tokens.shape[0]) if state is None else state
        x = self.embedding(tokens)
        position = state.position
        if self.host_positions:
            places, position = _positions(position, tokens.shape[1], mask, reset)
            x = x + sinusoid(places, x.shape[-1]).to(x.dtype)
        layers = []
        for block, inner in zip(self._blocks(), state.layers, strict=True):
            x, inner = block(x, inner, mask, reset)
            layers.append(inner)
        return self.norm(x), DecoderState(position, tuple(layers))

    @torch.no_grad()
    def stream(
        self,
        prompts: Tensor,
        *,
        mask: Tensor | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
        state: DecoderState | None = None,
    ) -> Iterator[Tensor]:
        """Yield the next token [B] of each row, without end. `mask` marks the real tokens of left-padded prompts.

        temperature 0 takes the likeliest token; top_k keeps that many before sampling.
        """
        if prompts.dim() != 2 or prompts.shape[1] < 1:
            raise ShapeError(f"A prompt needs at least one token: prompts must be [B, T ≥ 1]; received {list(prompts.shape)}.")
        if mask is not None and not bool(mask[:, -1].all()):
            raise ShapeError("Prompts must be padded on the left: the last token of each row must be real.")
        if temperature < 0 or (top_k is not None and top_k < 1):
            raise ShapeError(f"temperature must be ≥ 0 and top_k ≥ 1; received {temperature} and {top_k}.")
        hidden, state = self.hidden(prompts, state, mask=mask)
        while True:
            token = _choose(self.head(hidden[:, -1]), temperature, top_k, generator)
            yield token
            hidden, state = self.hidden(token.unsqueeze(1), state)

    def generate(self, prompts: Tensor, *, max_new_tokens: int, stop: int | None = None, **options: Any) -> Tensor:
        """Prompts [B, T] continued to [B, T + N], N ≤ max_new_tokens; options as in `stream`.

        After its `stop` token a row is filled with `stop`; generation ends when all rows have stopped.
        """
        if max_new_tokens < 0:
            raise ShapeError(f"max_new_tokens must be ≥ 0; received {max_new_tokens}.")
        training = self.training
        self.eval()
        try:
            columns, done = [prompts], torch.zeros(prompts.shape[0], dtype=torch.bool, device=prompts.device)
            for _, token in zip(range(max_new_tokens), self.stream(prompts, **options), strict=False):
                if stop is not None:
                    token = torch.where(done, stop, token)
                    done = done | (token == stop)
                columns.append(token.unsqueeze(1))
                if stop is not None and bool(done.all()):
                    break
            return torch.cat(columns, dim=1)
        finally:
            self.train(training)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors`. Raises OutputError, and CheckpointError for a mixer without an address."""
        if self.config["mixer"] is None:
            raise CheckpointError("This decoder was made from a function; give `mixer` as an address to save it.")
        tensors = self.state_dict()
        if self.config["tied"]:
            del tensors["head.weight"]
        checkpoint.save(Path(folder), self.config, tensors)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Decoder:
        """Read what `save_pretrained` wrote. Raises CheckpointError."""
        folder = Path(folder)
        config, tensors = checkpoint.read(folder)
        known = set(inspect.signature(cls).parameters)
        if set(config) != known:
            wanted, received = (", ".join(sorted(keys)) for keys in (known, config))
            raise CheckpointError(f"{folder / checkpoint.CONFIG} must have the keys {wanted}; received {received}.")
        try:
            model = cls(**config)
        except (InstarError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{folder / checkpoint.CONFIG} makes no decoder: {error}") from error
        if config["tied"] and "embedding.weight" in tensors:
            tensors = {**tensors, "head.weight": tensors["embedding.weight"]}
        checkpoint.load_into(model, tensors, str(folder / checkpoint.WEIGHTS))
        return model

    def _blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]


def sinusoid(positions: Tensor, width: int) -> Tensor:
    """Sinusoidal positions [B, T] → [B, T, width]: sines, then cosines, of position · 10000^(-2i/width); any length."""
    half = width // 2
    frequency = torch.exp(torch.arange(half, device=positions.device, dtype=torch.float32) * (-math.log(10000.0) / half))
    angle = positions.to(torch.float32).unsqueeze(-1) * frequency
    # Scaled to the size of the embeddings, which start at 0.02; at full size they would drown the tokens.
    return 0.02 * torch.cat([angle.sin(), angle.cos()], dim=-1)


def _positions(position: Tensor, T: int, mask: Tensor | None, reset: Tensor | None) -> tuple[Tensor, Tensor]:
    """Positions [B, T] of the new tokens and the count [B] after them: real tokens since the last reset."""
    B = position.shape[0]
    if T == 0:
        return position.new_zeros(B, 0), position
    real = position.new_ones(B, T) if mask is None else mask.to(position.dtype)
    counted = position.unsqueeze(1) + real.cumsum(1)
    before = counted - real
    if reset is None:
        return before, counted[:, -1]
    dropped = torch.where(reset, before, 0).cummax(1).values  # counts only grow, so the largest is the last reset's
    return before - dropped, counted[:, -1] - dropped[:, -1]


def _mixer(mixer: str | Callable[..., Mixer]) -> tuple[Callable[..., Mixer], str | None]:
    """How to build the mixer, and where its card says positions come from."""
    if not isinstance(mixer, str):
        return mixer, None
    address = catalogue.parse(mixer)
    cls, preset = catalogue.load(address.card), address.arguments
    if not issubclass(cls, Mixer):
        raise ShapeError(f"A decoder needs a Mixer; {mixer} is a {address.card.interface}.")
    return lambda width, **given: cls(width, **{**given, **preset}), address.card.capability("positions")


def _choose(logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None) -> Tensor:
    if temperature == 0:
        return logits.argmax(-1)
    if top_k is not None and top_k < logits.shape[-1]:
        least = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -math.inf)
    return torch.multinomial(torch.softmax(logits / temperature, dim=-1), 1, generator=generator).squeeze(-1)
