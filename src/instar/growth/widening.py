"""Which axis of which parameter of a plain decoder is what: coordinates of the stream, of heads, of the feed-forward layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from instar import catalogue
from instar.bench.seeds import stream
from instar.errors import TransformError
from instar.growth.axes import Axis, lengthened, lengthened_state
from instar.growth.growing import Growing
from instar.growth.plan import multiple
from instar.mixers.softmax import Softmax
from instar.models.decoder import Block, Decoder, SwiGLU

Part = Literal["reader", "writer", "table", "norm"]
"""What a parameter does: reads the stream, writes to it, is the embedding, or scales it."""
STD = 0.02


@dataclass(frozen=True)
class Widening:
    """An axis for each kind of coordinate; None where it stays. `_in` axes are of what reads, `_out` axes of what is written."""

    stream_in: Axis | None = None
    stream_out: Axis | None = None
    norm: Axis | None = None
    last_norm: Axis | None = None
    """Of the norm before the head, which is also the embedding where they are tied."""
    heads_in: Axis | None = None
    heads_out: Axis | None = None
    kv_out: Axis | None = None
    """Of keys and values, of which there may be fewer heads."""
    hidden_in: Axis | None = None
    hidden_out: Axis | None = None


@dataclass(frozen=True)
class Place:
    """One parameter of a decoder and its axes."""

    name: str
    module: nn.Module
    own: str
    part: Part
    axes: tuple[Axis | None, ...]

    @property
    def parameter(self) -> nn.Parameter:
        """As it is now."""
        return self.module._parameters[self.own]  # type: ignore[return-value]


def plain(model: nn.Module, method: str) -> Decoder:
    """The model, where it is a decoder whose every part is known. Raises TransformError."""
    if isinstance(model, Decoder) and all(_known(block) for block in model.blocks):
        return model
    mixer = f" of {type(model.mixer).__name__}" if isinstance(model, Decoder) else ""
    raise TransformError(
        f"{method} grows instar.models.decoder.Decoder with the mixer softmax; received a {type(model).__name__}{mixer}."
    )


def _known(block: nn.Module) -> bool:
    return isinstance(block, Block) and type(block.mixer) is Softmax and type(block.feed) is SwiGLU


def sizes(model: Decoder) -> dict[str, int]:
    """What a plan may name, as it is."""
    return {"width": model.width, "hidden": model.hidden, "depth": model.depth}


def attention(model: Decoder) -> Softmax:
    """The mixer of the first block, of a `plain` decoder."""
    mixer = model.mixer
    assert isinstance(mixer, Softmax)
    return mixer


def whole_heads(model: Decoder, width: int) -> int:
    """How many heads share keys and values. Raises TransformError for a width that is no whole number of such groups."""
    mixer = attention(model)
    group: int = mixer.heads // mixer.kv_heads
    multiple("width", width, mixer.head_width * group, f"heads are {mixer.head_width} wide, and {group} of them share keys")
    return group


def places(model: Decoder, to: Widening) -> Iterator[Place]:
    """Every parameter that may grow."""
    yield Place("embedding.weight", model.embedding, "weight", "table", (None, to.stream_out))
    for number, block in enumerate(model.blocks):
        mixer, feed = block.mixer, block.feed
        rows = {"q_proj": to.heads_out, "k_proj": to.kv_out, "v_proj": to.kv_out, "o_proj": to.stream_out}
        for name, out in rows.items():
            layer = mixer.get_submodule(name)  # type: ignore[union-attr]
            last = name == "o_proj"
            part: Part = "writer" if last else "reader"
            path = f"blocks.{number}.mixer.{name}"
            yield Place(f"{path}.weight", layer, "weight", part, (out, to.heads_in if last else to.stream_in))
            if layer.bias is not None:
                yield Place(f"{path}.bias", layer, "bias", part, (out,))
        for name in ("mixer_norm", "feed_norm"):
            yield Place(f"blocks.{number}.{name}.weight", block.get_submodule(name), "weight", "norm", (to.norm,))
        path = f"blocks.{number}.feed"
        for name in ("gate", "up"):
            yield Place(f"{path}.{name}.weight", feed.get_submodule(name), "weight", "reader", (to.hidden_out, to.stream_in))  # type: ignore[union-attr]
        yield Place(f"{path}.down.weight", feed.get_submodule("down"), "weight", "writer", (to.stream_out, to.hidden_in))  # type: ignore[union-attr]
    yield Place("norm.weight", model.norm, "weight", "norm", (to.last_norm,))
    if model.head is not None:
        yield Place("head.weight", model.head, "weight", "reader", (None, to.stream_in))


def values(place: Place, seed: int, std: Mapping[Part, float]) -> Tensor:
    """The new values of one parameter; new places are normal with the deviation of its part, 0 where there is none."""
    old = place.parameter.detach()
    shape = tuple(len(axis.source) if axis is not None else size for axis, size in zip(place.axes, old.shape, strict=True))
    fill = None
    if std.get(place.part, 0.0) and any(axis is not None and bool((axis.source < 0).any()) for axis in place.axes):
        drawn = torch.randn(shape, generator=stream(seed, f"grow/{place.name}/{tuple(old.shape)}"))
        fill = (drawn * std[place.part]).to(old.device, old.dtype)
    return lengthened(old, place.axes, fill)


def widen(model: Decoder, new: Mapping[str, Tensor], to: Widening, work: Growing) -> None:
    """Give every parameter that grows its new values, and the optimiser what it knows of it."""
    for place in list(places(model, to)):
        if all(axis is None for axis in place.axes):
            continue
        old = place.parameter
        fresh = nn.Parameter(new[place.name].contiguous(), requires_grad=old.requires_grad)
        place.module._parameters[place.own] = fresh
        work.kept.replace(old, fresh, lambda state, role, axes=place.axes: lengthened_state(state, axes, role))  # type: ignore[misc]


def settle(model: Decoder, width: int, hidden: int) -> None:
    """Bring what modules say of their sizes up to date, from their weights."""
    model.width, model.hidden, model.depth = width, hidden, len(model.blocks)
    for module in model.modules():
        weight: Any = module._parameters.get("weight")
        if isinstance(module, nn.Linear):
            module.out_features, module.in_features = weight.shape
        elif isinstance(module, nn.Embedding):
            module.embedding_dim = weight.shape[1]
        elif isinstance(module, nn.RMSNorm) and module.normalized_shape != tuple(weight.shape):
            module.normalized_shape = tuple(weight.shape)
        elif isinstance(module, Softmax):
            module.width = width
            module.heads = width // module.head_width
            module.kv_heads = module.k_proj.weight.shape[0] // module.head_width
    mixer = attention(model)
    if model.config is not None:
        sizes = {"width": width, "depth": model.depth, "hidden": hidden}
        model.config = {**model.config, **sizes, **heads(model.config, mixer.heads, mixer.kv_heads)}


def heads(config: Mapping[str, Any], count: int, kv: int) -> dict[str, Any]:
    """What a decoder's config says of its heads when there are so many, whether it, a preset or nobody had fixed them."""
    given = dict(config["mixer_arguments"])
    fixed = {**catalogue.parse(config["mixer"]).arguments, **given}
    given |= {name: found for name, found in (("heads", count), ("kv_heads", kv)) if fixed.get(name)}
    return {"heads": count, "mixer_arguments": given}
