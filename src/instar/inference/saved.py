"""Saving and loading a predictor: `config.json` and `model.safetensors`, both treated as hostile when read.

A predictor is built again from the catalogue's class and the arguments of its constructor, so that a file can name nothing else
to run. What it learns from on its way, such as the rows of a replay buffer, is not kept.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

import torch

from instar import catalogue, files
from instar.errors import CheckpointError, InstarError, ShapeError, UnknownNameError
from instar.interfaces import Predictor
from instar.models import checkpoint
from instar.models.blank import without_memory
from instar.models.pretrained import CONFIG, WEIGHTS

FORMAT = "instar-predictor-1"
_TYPES: dict[str, type] = {"format": str, "method": str, "arguments": dict}


def save(model: Predictor, folder: Path) -> None:
    """Write both files, each at once; the weights first, so that a new folder has a config only when it is whole.

    Its tensors and its arguments are kept, not attributes that were set since. Raises UnknownNameError for a class that is no
    method of the catalogue, ShapeError for arguments that JSON cannot hold, OutputError.
    """
    card = catalogue.of(type(model))
    if card is None or catalogue.load(card) is not type(model):
        raise UnknownNameError(f"{type(model).__name__} is no method of the catalogue, so nobody could load it. Give it a card.")
    config = {"format": FORMAT, "method": card.slug, "arguments": model.arguments}
    try:
        whole = json.loads(json.dumps(config, allow_nan=False)) == config
    except (TypeError, ValueError):
        whole = False
    if not whole:
        raise ShapeError(f"{card.slug} was built with {model.arguments}: only numbers, text and lists of them can be saved.")
    folder = files.folder(Path(folder))
    checkpoint.write(folder / WEIGHTS, model.state_dict())
    files.write_json(folder / CONFIG, config)


def load(folder: Path) -> Predictor:
    """The predictor in `folder`, to the bit, in eval mode on the CPU. Raises CheckpointError, UnknownNameError for a method that
    is not known."""
    folder = Path(folder)
    method, arguments = _config(folder / CONFIG)
    path = folder / WEIGHTS
    tensors, _ = checkpoint.read(path)
    cls: Any = catalogue.load(catalogue.method(method))
    if not issubclass(cls, Predictor):
        raise CheckpointError(f"{folder / CONFIG} names {method}, which is no predictor.")
    try:
        with torch.random.fork_rng(devices=[]):
            # First without memory: sizes are held to the tensors before anything is allocated for them.
            with without_memory(len(tensors), f"{CONFIG} describes a larger model than {WEIGHTS} holds. Nothing was loaded."):
                blank: Predictor = cls(**arguments)
            checkpoint.compare(path, tensors, blank.state_dict())
            model: Predictor = cls(**arguments)
    except CheckpointError:
        raise
    except (InstarError, TypeError, ValueError, KeyError, RuntimeError, OverflowError, MemoryError) as error:
        raise CheckpointError(f"{folder / CONFIG} describes no {method}: {error}") from error
    kinds = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    if len(kinds) == 1:
        model = model.to(kinds.pop())  # what is no part of the file, such as fixed positions, was in this type too
    # Copies: where a tensor lies in the file at an odd place, products round otherwise on some processors.
    model.load_state_dict({name: tensor.clone() for name, tensor in tensors.items()}, assign=True)
    return model.eval()


def _config(path: Path) -> tuple[str, dict[str, Any]]:
    """The method and its arguments."""
    if not path.is_file():
        raise CheckpointError(f"There is no file {path}.")
    try:
        config = json.loads(path.read_text("utf-8"), parse_constant=_refuse)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no JSON: {error}") from error
    if not isinstance(config, dict) or set(config) != set(_TYPES):
        keys = sorted(set(config) ^ set(_TYPES)) if isinstance(config, dict) else [type(config).__name__]
        raise CheckpointError(f"{path} expects exactly the keys {', '.join(_TYPES)}; missing or unknown: {', '.join(keys)}.")
    for key, kind in _TYPES.items():
        if type(config[key]) is not kind:
            raise CheckpointError(f"{path}: '{key}' expects {kind.__name__}, received {type(config[key]).__name__}.")
    if config["format"] != FORMAT:
        raise CheckpointError(f"{path} is not of the format {FORMAT}.")
    return config["method"], config["arguments"]


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON")
