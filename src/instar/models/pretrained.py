"""Saving and loading a decoder: `config.json` and `model.safetensors`, both treated as hostile when read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from instar import catalogue, files
from instar.errors import CheckpointError, InstarError
from instar.models import checkpoint
from instar.models.blank import without_memory
from instar.models.decoder import Decoder

CONFIG, WEIGHTS = "config.json", "model.safetensors"
_FORMAT = "instar-decoder-1"
_TYPES: dict[str, type] = {
    "format": str,
    "vocabulary": int,
    "width": int,
    "depth": int,
    "mixer": str,
    "heads": int,
    "tied": bool,
    "hidden": int,
    "mixer_arguments": dict,
}


def save(model: Decoder, folder: Path) -> None:
    """Write both files, each at once; the weights first, so that a new folder has a config only when it is whole."""
    if model.config is None:
        raise CheckpointError(
            "This decoder has no address, which alone is saved: it was built from a callable, or its mixers were replaced."
        )
    files.folder(folder)
    checkpoint.write(folder / WEIGHTS, model.state_dict())
    files.write_json(folder / CONFIG, {"format": _FORMAT, **model.config})


def load(folder: Path) -> Decoder:
    """The decoder in `folder`, with the floating type of its weights, in eval mode. Raises CheckpointError."""
    config = _config(folder / CONFIG)
    path = folder / WEIGHTS
    tensors, _ = checkpoint.read(path)
    # Sizes are held to the tensors before anything is allocated for them.
    embedding = tensors.get("embedding.weight")
    wanted = (config["vocabulary"], config["width"])
    if embedding is None or tuple(embedding.shape) != wanted:
        found = "missing" if embedding is None else f"of shape {tuple(embedding.shape)}"
        raise CheckpointError(f"{path} does not fit {CONFIG}: embedding.weight is {found}, expected {wanted}.")
    hidden = tensors.get("blocks.0.feed.up.weight")
    if config["depth"] > len(tensors) or (hidden is not None and config["hidden"] not in (0, hidden.shape[0])):
        raise CheckpointError(f"{path} does not fit {CONFIG}: depth or hidden are not those of the tensors.")
    try:
        with torch.random.fork_rng(devices=[]):
            # First without memory: the mixer's own arguments may ask for any sizes.
            with without_memory(len(tensors), f"{folder / CONFIG} describes a larger model than {WEIGHTS} holds."):
                blank = Decoder(**config)
            checkpoint.compare(path, tensors, blank.state_dict())
            model = Decoder(**config)
    except CheckpointError:
        raise
    except (InstarError, TypeError, ValueError, RuntimeError, MemoryError) as error:
        raise CheckpointError(f"{folder / CONFIG} describes no decoder: {error}") from error
    model = model.to(embedding.dtype)  # before loading, which would otherwise round to float32
    model.load_state_dict(tensors)
    return model.eval()


def _config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"There is no file {path}.")
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no JSON: {error}") from error
    if not isinstance(config, dict) or set(config) != set(_TYPES):
        keys = sorted(set(config) ^ set(_TYPES)) if isinstance(config, dict) else [type(config).__name__]
        raise CheckpointError(f"{path} expects exactly the keys {', '.join(_TYPES)}; missing or unknown: {', '.join(keys)}.")
    for key, kind in _TYPES.items():
        if type(config[key]) is not kind:
            raise CheckpointError(f"{path}: '{key}' expects {kind.__name__}, received {type(config[key]).__name__}.")
    if config.pop("format") != _FORMAT:
        raise CheckpointError(f"{path} is not of the format {_FORMAT}.")
    try:
        catalogue.parse(config["mixer"])
    except InstarError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return config
