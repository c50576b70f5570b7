"""A decoder over pairs (x_1, y_1), (x_2, y_2), …: what learns to learn, around any token mixer or any `transformers` backbone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from instar import catalogue
from instar.errors import ShapeError
from instar.interfaces import Mixer
from instar.lab.icl.contexts import interleave


class Block(nn.Module):
    """h ← h + mixer(LN h); h ← h + W_2 gelu(W_1 LN h). With `normalised`, the residual is LN h, as in the authors' code."""

    def __init__(self, mixer: Mixer, width: int, normalised: bool) -> None:
        super().__init__()
        self.mixer, self.normalised = mixer, normalised
        self.mixer_norm, self.feed_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))

    def forward(self, h: Tensor) -> Tensor:
        normal = self.mixer_norm(h)
        h = (normal if self.normalised else h) + self.mixer(normal)[0]
        normal = self.feed_norm(h)
        return (normal if self.normalised else h) + self.feed(normal)


class MixerBackbone(nn.Module):
    """Blocks around a mixer of the catalogue, after learned absolute positions unless the mixer has positions of its own.

    Args: address of the catalogue; width of the model, depth, heads; tokens: the longest sequence; normalised: see `Block`.
    Raises ShapeError for a mixer whose card says `bidirectional`, UnknownNameError.
    """

    def __init__(self, address: str, *, width: int, depth: int, heads: int, tokens: int, normalised: bool = False) -> None:
        super().__init__()
        if min(width, depth, heads, tokens) < 1:
            raise ShapeError(f"Expected width, depth, heads, tokens ≥ 1; received {width}, {depth}, {heads}, {tokens}.")
        found = catalogue.parse(address)
        if found.card.capability("bidirectional"):
            raise ShapeError(f"{address} reads on both sides, and would read the label that is asked for.")
        cls = catalogue.load(found.card)
        if not issubclass(cls, Mixer):
            raise ShapeError(f"{address} is no mixer.")
        self.width = width
        self.blocks = nn.ModuleList(
            Block(cls(width, **{"heads": heads, **found.arguments}), width, normalised) for _ in range(depth)
        )
        mixers = {id(m) for block in self.blocks for m in block.mixer.modules()}  # type: ignore[union-attr]
        # U(±1/√fan-in) for every kernel: small normal weights leave a narrow model on the plateau of the zero predictor for
        # thousands of steps. A mixer's biases and parameters of its own keep their start.
        for module in self.modules():
            if isinstance(module, nn.Linear):
                bound = module.in_features**-0.5
                nn.init.uniform_(module.weight, -bound, bound)
                if module.bias is not None and id(module) not in mixers:
                    nn.init.uniform_(module.bias, -bound, bound)
        own = "rope" in found.arguments and not found.arguments["rope"]
        hosted = own or found.card.capability("positions") == "host"
        bound = width**-0.5
        self.positions = nn.Parameter(torch.empty(tokens, width).uniform_(-bound, bound)) if hosted else None

    def forward(self, embedded: Tensor) -> Tensor:
        """Embedded tokens [B, T, width] -> hidden states [B, T, width]."""
        h = embedded if self.positions is None else embedded + self.positions[: embedded.shape[1]]
        for block in self.blocks:
            h = block(h)
        return h

    def hidden(self, embedded: Tensor) -> list[Tensor]:
        """The states before the first block and after each, [B, T, width]: what probes read."""
        found = [embedded if self.positions is None else embedded + self.positions[: embedded.shape[1]]]
        for block in self.blocks:
            found.append(block(found[-1]))
        return found


class TransformersBackbone(nn.Module):
    """Any model of `transformers` whose base model takes `inputs_embeds`: positions, masks and norms are its own.

    Args: model: the model, causal; frozen: train read-in and read-out alone. Raises ShapeError for a model that is not a decoder
    over hidden states.
    """

    def __init__(self, model: nn.Module, *, frozen: bool = False) -> None:
        super().__init__()
        config: Any = getattr(model, "config", None)
        width = getattr(config, "hidden_size", None)
        if config is None or width is None or getattr(config, "is_encoder_decoder", False):
            raise ShapeError(
                f"{type(model).__name__} has no config.hidden_size of a decoder; give a causal model of transformers."
            )
        self.model = getattr(model, getattr(model, "base_model_prefix", ""), model)
        self.width, self.frozen = int(width), frozen
        if frozen:
            self.model.requires_grad_(False)

    def forward(self, embedded: Tensor) -> Tensor:
        return self.model(inputs_embeds=embedded, use_cache=False).last_hidden_state

    def hidden(self, embedded: Tensor) -> list[Tensor]:
        """The embeddings and the states after each layer."""
        found = self.model(inputs_embeds=embedded, use_cache=False, output_hidden_states=True)
        return list(found.hidden_states)


class PairNetwork(nn.Module):
    """ŷ_i = ⟨r, h_{2i-1}⟩ + b: a linear map of the tokens, the backbone, and a linear read-out at each x_i.

    Args: width: D of the inputs. examples: the most pairs. backbone: has `width`, `forward` and `hidden`.
    """

    def __init__(self, width: int, examples: int, backbone: MixerBackbone | TransformersBackbone) -> None:
        super().__init__()
        self.inputs, self.examples, self.backbone = width, examples, backbone
        self.read_in, self.read_out = nn.Linear(1 + width, backbone.width), nn.Linear(backbone.width, 1)

    def forward(self, xs: Tensor, ys: Tensor) -> Tensor:
        """xs [B, N, D], ys [B, N] -> what is said of each y at its x, [B, N]."""
        return self.read_out(self._run(self.backbone, xs, ys)[:, ::2]).squeeze(-1)

    def hidden(self, xs: Tensor, ys: Tensor) -> list[Tensor]:
        """States [B, 2N, width] before the first layer and after each."""
        return self._run(self.backbone.hidden, xs, ys)

    def _run(self, through: Callable[[Tensor], Any], xs: Tensor, ys: Tensor) -> Any:
        if xs.shape[-1] != self.inputs or xs.shape[1] > self.examples:
            raise ShapeError(
                f"The network was made for at most {self.examples} pairs of width {self.inputs}; received {list(xs.shape)}. "
                "Positions beyond those it was trained on mean nothing."
            )
        return through(self.read_in(interleave(xs, ys)))
