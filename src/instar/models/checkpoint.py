"""Checkpoints: `config.json` + `model.safetensors`. Read strictly, written at once; nothing is ever unpickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor, nn

from instar import files
from instar.errors import CheckpointError

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def save(folder: Path, config: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write both files; a reader that comes in between finds the old pair or a mismatch that `read` refuses."""
    files.folder(folder)
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    files.write(folder / WEIGHTS, safetensors.torch.save(whole))
    files.write_json(folder / CONFIG, config)


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration and the tensors. Raises CheckpointError for anything that is not such a pair."""
    return read_config(folder / CONFIG), read_tensors(folder / WEIGHTS)


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object. Raises CheckpointError."""
    try:
        config = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}.") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} must hold an object, received {type(config).__name__}.")
    return config


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file. Raises CheckpointError for a pickle of that name, a cut-off file and the like."""
    try:
        return safetensors.torch.load(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is no safetensors file ({error}). Files of other kinds are not opened.") from error


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Copy tensors into a module of exactly their names and shapes. Raises CheckpointError, and then changes nothing."""
    own = module.state_dict()
    problems = [f"missing {name}" for name in own if name not in tensors]
    problems += [f"unknown {name}" for name in tensors if name not in own]
    problems += [
        f"{name} is {list(tensors[name].shape)}, expected {list(own[name].shape)}"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError(f"{where} does not fit the model: {'; '.join(problems[:5])}{more}.")
    module.load_state_dict(dict(tensors))
