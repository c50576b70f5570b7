"""The kinds of layer and of format that a manifest may name: what is built from an untrusted folder, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from instar.compression.blocks import BlockFormat
from instar.compression.gguf_blocks import GgufFormat
from instar.compression.int8_linear import Int8Linear
from instar.compression.magnitude_pruning import Sparse
from instar.compression.stored import StoredEmbedding, StoredLinear, WeightFormat
from instar.compression.whole import BlockActivation, BlockLinear, BlockNorm
from instar.errors import CheckpointError

FORMATS: dict[str, type[Any]] = {"blocks": BlockFormat, "gguf": GgufFormat, "sparse": Sparse}
LAYERS: dict[str, type[Any]] = {"linear": StoredLinear, "embedding": StoredEmbedding, "int8": Int8Linear} | {
    "block_linear": BlockLinear,
    "block_activation": BlockActivation,
    "block_norm": BlockNorm,
}
_MOST = 2**40
"""Elements of a weight."""


def known(module: nn.Module) -> bool:
    """Whether a manifest describes layers of this class."""
    return type(module) in LAYERS.values()


def describe(module: nn.Module) -> dict[str, Any]:
    """What a manifest says of a layer."""
    kind = next(name for name, cls in LAYERS.items() if cls is type(module))
    return {"kind": kind, **module.spec()}  # type: ignore[operator]


def blank(spec: Mapping[str, Any]) -> nn.Module:
    """The layer of a description, without data. Raises CheckpointError, ShapeError, and what a wrong type raises."""
    given = dict(spec)
    kind = given.pop("kind")
    if kind not in LAYERS:
        raise CheckpointError(f"A manifest names the kind of layer {kind!r}; known are {', '.join(LAYERS)}.")
    for key in ("format", "inputs"):
        if given.get(key) is not None:
            given[key] = format_of(given[key])
    if "shape" in given:
        given["shape"] = shape = tuple(int(n) for n in given["shape"])
        if len(shape) != 2 or min(shape) < 1 or shape[0] * shape[1] > _MOST:
            raise CheckpointError(f"A manifest gives a layer the shape {shape}.")
        if "bias" in given:
            given["bias"] = nn.Parameter(torch.empty(shape[0], device="meta")) if given["bias"] else None
    made: nn.Module = LAYERS[kind].blank(**given)
    return made


def format_of(settings: Mapping[str, Any]) -> WeightFormat:
    """A format from its settings."""
    given = dict(settings)
    kind = given.pop("kind")
    if kind not in FORMATS:
        raise CheckpointError(f"A manifest names the format {kind!r}; known are {', '.join(FORMATS)}.")
    made: WeightFormat = FORMATS[kind](**given)
    return made
