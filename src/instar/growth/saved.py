"""Saving and loading a TokenFormer: `config.json` and `model.safetensors`, both treated as hostile when read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from instar import files
from instar.errors import CheckpointError, InstarError
from instar.growth.pattention import MODES
from instar.growth.tokenformer_decoder import KINDS, TokenFormer
from instar.models import checkpoint
from instar.models.decoder import Decoder
from instar.models.pretrained import CONFIG, WEIGHTS
from instar.models.pretrained import load as load_decoder

FORMAT = "instar-tokenformer-1"
_INSIDE = "config"
"""Its name among what the weights say of themselves."""
_TYPES: dict[str, type] = {
    **{"format": str, "vocabulary": int, "width": int, "depth": int, "heads": int, "mode": str, "tied": bool},
    **{"rope_base": float, "layers": list, "tau2": list},
}


def save(model: TokenFormer, folder: Path) -> None:
    """Write both files, each at once; the weights first, so that a new folder has a config only when it is whole.

    The weights say the config as well, and theirs counts: who is killed between the two files, over an older TokenFormer, leaves
    one that can be loaded.
    """
    model.describe()
    parts = dict(model.pattentions())
    tau2 = [{kind: float(parts[f"blocks.{i}.{kind}"].tau2) for kind in KINDS} for i in range(model.depth)]
    files.folder(folder)
    config = {"format": FORMAT, **(model.config or {}), "tau2": tau2}
    checkpoint.write(folder / WEIGHTS, model.state_dict(), {_INSIDE: json.dumps(config)})
    files.write_json(folder / CONFIG, config)


def load(folder: Path) -> TokenFormer:
    """The TokenFormer in `folder`, with the floating type of its weights, in eval mode. Raises CheckpointError."""
    path = folder / WEIGHTS
    tensors, said = checkpoint.read(path)
    source, config = _config(folder, said)
    tau2 = config.pop("tau2")
    # Sizes are held to the tensors before anything is allocated for them.
    embedding = tensors.get("embedding.weight")
    wanted = (config["vocabulary"], config["width"])
    if embedding is None or tuple(embedding.shape) != wanted:
        found = "missing" if embedding is None else f"of shape {tuple(embedding.shape)}"
        raise CheckpointError(f"{path} does not fit {source}: embedding.weight is {found}, expected {wanted}.")
    pairs = sum(count for counts in config["layers"] for parts in counts.values() for count in parts)
    if pairs != sum(len(tensor) for name, tensor in tensors.items() if ".keys." in name):
        raise CheckpointError(f"{path} does not fit {source}, which says that there are {pairs} pairs.")
    try:
        with torch.random.fork_rng(devices=[]):
            model = TokenFormer(**config)
    except (InstarError, TypeError, ValueError, RuntimeError, MemoryError) as error:
        raise CheckpointError(f"{source} describes no TokenFormer: {error}") from error
    model = model.to(embedding.dtype)
    checkpoint.compare(path, tensors, model.state_dict())
    model.load_state_dict(tensors)
    for name, part in model.pattentions():
        _, number, kind = name.split(".")
        if float(part.tau2) != tau2[int(number)][kind]:
            raise CheckpointError(
                f"{source} says that τ² of {name} is {tau2[int(number)][kind]}, the weights that it is {float(part.tau2)}."
            )
    return model.eval()


def recognised(folder: Path) -> bool:
    """Whether a folder says that it holds a TokenFormer."""
    try:
        config = json.loads((folder / CONFIG).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and config.get("format") == FORMAT


def load_any(folder: Path) -> Decoder:
    """The TokenFormer or the plain decoder in a folder. Raises CheckpointError."""
    return load(folder) if recognised(folder) else load_decoder(folder)


def _config(folder: Path, said: dict[str, str]) -> tuple[str, dict[str, Any]]:
    """Where the config is from, in words, and what it says; older weights say none."""
    path = f"The config in {folder / WEIGHTS}" if _INSIDE in said else str(folder / CONFIG)
    if _INSIDE not in said and not (folder / CONFIG).is_file():
        raise CheckpointError(f"There is no file {path}.")
    try:
        config = json.loads(said[_INSIDE] if _INSIDE in said else (folder / CONFIG).read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no JSON: {error}") from error
    if not isinstance(config, dict) or set(config) != set(_TYPES):
        keys = sorted(set(config) ^ set(_TYPES)) if isinstance(config, dict) else [type(config).__name__]
        raise CheckpointError(f"{path} expects exactly the keys {', '.join(_TYPES)}; missing or unknown: {', '.join(keys)}.")
    for key, kind in _TYPES.items():
        if type(config[key]) is not kind:
            raise CheckpointError(f"{path}: '{key}' expects {kind.__name__}, received {type(config[key]).__name__}.")
    if config.pop("format") != FORMAT or config["mode"] not in MODES:
        raise CheckpointError(f"{path} is not of the format {FORMAT}, or of a mode that nobody knows.")
    for key, good in (("layers", _counts), ("tau2", lambda value: type(value) is float)):
        whole = len(config[key]) == config["depth"] and all(
            isinstance(one, dict) and set(one) == set(KINDS) for one in config[key]
        )
        if not whole or not all(good(value) for one in config[key] for value in one.values()):
            raise CheckpointError(f"{path}: '{key}' expects {', '.join(KINDS)} for each of {config['depth']} blocks.")
    return path, config


def _counts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(count) is int and count > 0 for count in value)
