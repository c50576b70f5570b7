"""The parameters of a stored model, or of one that only has a configuration, on the device meta: sizes without weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from instar import extras
from instar.data import pretrained
from instar.errors import ModelError
from instar.models import streaming


def groups(model: str, dtype: torch.dtype | None = None) -> list[dict[str, Any]]:
    """Parameter groups of a model, matrices first and what does not decay after them; every parameter is on the device meta.

    Args:
        model: a folder of `transformers`, whose weight files are only asked for names and shapes; a config.json, or a folder with
            nothing else, of which the model is built without memory; a packaged name or a cached hub id. dtype: that it is
            trained in; None is that of the weights.

    Raises ModelError, UnknownNameError, CheckpointError, MissingExtraError.
    """
    path = Path(model).expanduser()
    if path.suffix == ".json" or (path.is_dir() and not list(path.glob("*.safetensors*"))):
        found = _of_config(path if path.is_dir() else path.parent, path)
    else:
        found = _of_weights(pretrained.folder(model))
    if dtype is not None:
        found = [p.to(dtype) for p in found]
    both = [[p for p in found if p.dim() >= 2], [p for p in found if p.dim() < 2]]
    return [{"params": params} for params in both if params]


def _of_weights(folder: Path) -> list[Tensor]:
    """As they are stored: shared ones once; buffers of floats count too, which are small."""
    every = [part for file in pretrained.weights(folder) for part in streaming.parts(file).values()]
    found = [torch.empty(part.shape, dtype=part.dtype, device="meta") for part in every if part.dtype.is_floating_point]
    if not found:
        raise ModelError(f"{folder} holds no weights of floats.")
    return found


def _of_config(folder: Path, given: Path) -> list[Tensor]:
    """Of a model that its configuration describes."""
    transformers = extras.require("transformers", "models")
    if not given.exists() or not (given.is_file() or (folder / "config.json").is_file()):
        raise ModelError(f"{given} is neither a folder of transformers nor a config.json.")
    try:
        config = transformers.AutoConfig.from_pretrained(str(given))
        named = getattr(transformers, (config.architectures or [""])[0], None)
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config) if named is None else named(config)
    except (ValueError, OSError, KeyError, TypeError, AttributeError, ImportError, RuntimeError) as error:
        raise ModelError(f"{given} describes no model that can be built: {type(error).__name__}: {error}") from error
    return [p.detach() for p in model.parameters()]
