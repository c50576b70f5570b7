"""One pre-norm decoder for every token mixer: mixer and SwiGLU under RMSNorm, tied head."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from instar import catalogue
from instar.errors import ShapeError
from instar.interfaces import Mixer
from instar.mixers.positions import count_positions, sinusoid
from instar.models import generation
from instar.state import State

BuildMixer = Callable[..., Mixer]


class SwiGLU(nn.Module):
    """y = W_down (silu(W_gate x) ⊙ W_up x) on [B, T, D] (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """x ← x + mixer(RMSNorm(x)); x ← x + SwiGLU(RMSNorm(x))."""

    def __init__(self, mixer: Mixer, width: int, hidden: int) -> None:
        super().__init__()
        self.mixer_norm = nn.RMSNorm(width, eps=1e-6)
        self.mixer = mixer
        self.feed_norm = nn.RMSNorm(width, eps=1e-6)
        self.feed = SwiGLU(width, hidden)

    def forward(self, x: Tensor, state: State, mask: Tensor | None, reset: Tensor | None) -> tuple[Tensor, State]:
        mixed, state = self.mixer(self.mixer_norm(x), state, mask=mask, reset=reset)
        x = x + mixed
        return x + self.feed(self.feed_norm(x)), state


class Decoder(nn.Module):
    r"""A causal language model: logits = E · RMSNorm(block_L(… block_1(E[tokens] + positions))).

    Positions follow the `positions` tag of the mixer's card: with `host` (and for a mixer without a card) a sinusoid with one
    learned amplitude is added to the embeddings, counting real tokens since the last reset; otherwise nothing is added.

    Args:
        vocabulary: number of tokens.
        width: D. depth: number of blocks. heads: given to the mixer.
        mixer: an address of the catalogue ("gla:no_gate"), or a callable `build(width, heads=…) -> Mixer`. Only a decoder with
            an address can be saved.
        mixer_arguments: further arguments of the mixer, over those of the address's preset.
        hidden: width of the SwiGLU; 0 means 8/3 D rounded up to a multiple of 64.
        tied: whether the head is the embedding.

    Shapes: tokens int64 [B, T] -> logits [B, T, vocabulary]; state {"position": int64 [B], "layers": one state a block}.
    Raises ShapeError, also for a mixer whose card says `bidirectional`, and UnknownNameError. Sources: Vaswani et al. 2017
    (sinusoids), Xiong et al. 2020 (pre-norm, 2002.04745).
    """

    gradient_checkpointing: bool = False
    """Whether training keeps the inputs of blocks alone and computes the rest again. `transformers` sets it, and how, by its own
    names for both."""
    _gradient_checkpointing_func: Callable[..., Any] = staticmethod(functools.partial(checkpoint, use_reentrant=False))

    def __init__(
        self,
        vocabulary: int,
        width: int = 128,
        depth: int = 2,
        mixer: str | BuildMixer = "softmax",
        *,
        heads: int = 4,
        mixer_arguments: dict[str, Any] | None = None,
        hidden: int = 0,
        tied: bool = True,
    ) -> None:
        super().__init__()
        if min(vocabulary, width, depth, heads) < 1 or hidden < 0:
            raise ShapeError(
                "A decoder expects vocabulary, width, depth and heads of at least 1 and hidden of at least 0; received "
                f"{vocabulary}, {width}, {depth}, {heads} and {hidden}."
            )
        self.config: dict[str, Any] | None = None
        arguments = {"heads": heads, **(mixer_arguments or {})}
        if isinstance(mixer, str):
            address = catalogue.parse(mixer)
            arguments = {"heads": heads, **address.arguments, **(mixer_arguments or {})}
            self.config = {
                **{"vocabulary": vocabulary, "width": width, "depth": depth, "heads": heads, "hidden": hidden, "tied": tied},
                **{"mixer": str(address), "mixer_arguments": dict(mixer_arguments or {})},
            }
            mixer = catalogue.load(address.card)
        self.vocabulary, self.width, self.depth, self.tied = vocabulary, width, depth, tied
        self.hidden = hidden or -(-8 * width // (3 * 64)) * 64
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(mixer(width, **arguments), width, self.hidden) for _ in range(depth))
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.head = None if tied else nn.Linear(width, vocabulary, bias=False)
        card = catalogue.of(type(self.mixer))
        if card is not None and card.capability("bidirectional"):
            raise ShapeError(f"A decoder predicts the next token; {card.slug} is bidirectional and would read it.")
        hosted = card is None or card.capability("positions") == "host"
        # The sinusoid starts with the variance of the embeddings, or it would drown them.
        self.amplitude = nn.Parameter(torch.tensor(0.02 * 2**0.5)) if hosted else None
        own: list[nn.Module] = [self.embedding, *([self.head] if self.head is not None else [])]
        own += [layer for block in self.blocks for layer in block.feed.children()]  # type: ignore[union-attr]
        for layer in own:
            nn.init.normal_(layer.weight, std=0.02)  # type: ignore[arg-type]

    @property
    def mixer(self) -> Mixer:
        """The mixer of the first block."""
        return self.blocks[0].mixer  # type: ignore[return-value]

    def init_state(self, batch: int) -> State:
        """The state before the first token."""
        layers = tuple(block.mixer.init_state(batch) for block in self.blocks)  # type: ignore[operator,union-attr]
        return {"position": self._first_position(batch), "layers": layers}

    def _first_position(self, batch: int) -> Tensor:
        return torch.zeros(batch, dtype=torch.int64, device=self.embedding.weight.device)

    def forward(
        self, tokens: Tensor, state: State = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Logits [B, T, vocabulary] of tokens [B, T], and the state after them; `state`, `mask`, `reset` as in `Mixer`."""
        x, state = self.features(tokens, state, mask=mask, reset=reset)
        return self.logits(x), state

    def features(
        self, tokens: Tensor, state: State = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """What the head reads, [B, T, D], and the state: `forward` for those who need the logits of few places."""
        if tokens.dim() != 2 or tokens.is_floating_point():
            raise ShapeError(f"A decoder expects integer tokens [B, T]; received {tuple(tokens.shape)} of {tokens.dtype}.")
        if state is None:  # each mixer makes its own first state where its weights are whole: they may be shards outside of it
            state = {"position": self._first_position(tokens.shape[0]), "layers": (None,) * self.depth}
        where, position = count_positions(state["position"], tokens.shape[1], mask, reset)
        x = self.embedding(tokens)
        if self.amplitude is not None:
            x = x + self.amplitude * sinusoid(where, self.width).to(x.dtype)
        layers = []
        again = self.gradient_checkpointing and self.training and torch.is_grad_enabled()
        for block, layer in zip(self.blocks, state["layers"], strict=True):
            run = functools.partial(self._gradient_checkpointing_func, block) if again else block
            x, layer = run(x, layer, mask, reset)
            layers.append(layer)
        return self.norm(x), {"position": position, "layers": tuple(layers)}

    def logits(self, x: Tensor) -> Tensor:
        """The head: features [B, T, D] -> [B, T, vocabulary]."""
        return F.linear(x, self.embedding.weight) if self.head is None else self.head(x)

    def stream(self, prompts: Tensor, **settings: Any) -> Iterator[Tensor]:
        """New tokens [B], one step at a time; arguments as `generate`."""
        return generation.stream(self, prompts, **settings)

    def generate(self, prompts: Tensor, **settings: Any) -> Tensor:
        """Continue `prompts` [B, T] and return the new tokens [B, ≤ max_new_tokens]; see `generation.stream`."""
        found = list(self.stream(prompts, **settings))
        return torch.stack(found, 1) if found else prompts.new_zeros(prompts.shape[0], 0)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors`. Raises CheckpointError, OutputError."""
        from instar.models import pretrained

        pretrained.save(self, Path(folder))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Decoder:
        """Read what `save_pretrained` wrote. Raises CheckpointError; nothing is unpickled."""
        from instar.models import pretrained

        return pretrained.load(Path(folder))
