"""A compressed model on disk: packed tensors in safetensors, and a manifest from which it is built again without the original.

    compression.json          what each layer is, which tensors are shared, the steps that were made, the fingerprint
    compressed.safetensors    every tensor of the model
    config.json, tokenizer    of a model of `transformers`, as it writes them

Nothing in a folder is trusted: no code is named in it but classes of `transformers` models and the kinds of layer below.
"""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from instar import extras, files
from instar.compression import kinds, whole_attention
from instar.compression.compressor import exchange
from instar.compression.pruning import cutting
from instar.compression.pruning.removed import Removed
from instar.data.pretrained import COMPRESSED
from instar.errors import CheckpointError, InstarError, OutputError, TransformError
from instar.models import checkpoint, streaming
from instar.receipt import Receipt, fingerprint
from instar.receipts.fingerprint import named

MANIFEST, WEIGHTS = "compression.json", COMPRESSED
FORMAT = "instar-compressed-1"


def save(
    model: nn.Module, folder: str | Path, *, steps: Sequence[Receipt | Mapping[str, Any]] = (), tokenizer: Any = None
) -> Path:
    """Write a compressed model to a new folder, whole or not at all.

    steps: what was done to it, for the manifest: receipts, or whatever says it. tokenizer: of `transformers`, written beside it.
    Memory beyond the model: one tensor. Raises OutputError for a folder that holds something, TransformError for layers that
    cannot be written.
    """
    path = Path(folder)
    tensors = {name: tensor for name, (tensor, _) in named(model).items()}
    manifest = {
        "format": FORMAT,
        "model": type(model).__name__ if _of_transformers(model) else None,
        "fingerprint": fingerprint(model),
        "layers": {name: kinds.describe(module) for name, module in model.named_modules() if kinds.known(module)},
        "shared": _shared(model),
        "attention": whole_attention.installed(model),
        "removed": cutting.standing(model),
        "training": model.training,
        "steps": [asdict(step.facts) | {"id": step.id} if isinstance(step, Receipt) else dict(step) for step in steps],
    }
    files.folder(path.parent)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        streaming.write(temporary / WEIGHTS, {name: streaming.Part.held(tensor) for name, tensor in tensors.items()})
        files.write_json(temporary / MANIFEST, _plain(manifest))
        if _of_transformers(model):
            config: Any = copy.deepcopy(model.config)
            config.architectures = [type(model).__name__]  # from which others tell what kind of model this is
            config.save_pretrained(temporary)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)
        temporary.chmod(0o755)
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"Cannot write {path}: {error.strerror}. It needs a folder that does not exist yet.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return path


def load(folder: str | Path, build: Callable[[], nn.Module] | None = None) -> nn.Module:
    """The model of a folder, to the bit; its original weights are not needed.

    build: makes the model before compression, with any weights; needed where it is none of `transformers`. It is called on the
    device meta, so that nothing is allocated.

    Raises CheckpointError for a folder that is damaged or does not fit `build`.
    """
    path = Path(folder)
    manifest = _manifest(path)
    tensors, _ = checkpoint.read(path / WEIGHTS)
    try:
        with torch.device("meta"):
            model = _blank(path, manifest) if build is None else build()
        if manifest.get("removed") is not None:
            cutting.cut_again(model, manifest["removed"])
        layers = dict(model.named_modules())
        exchange(model, {layers[name]: kinds.blank(spec) for name, spec in manifest["layers"].items()})
        _fill(model, tensors, manifest["shared"], path)
        if manifest["attention"] is not None:
            whole_attention.install(model, manifest["attention"])
    except InstarError:
        raise
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} does not describe a model that can be built here ({type(error).__name__}: {error})."
        ) from error
    if fingerprint(model) != manifest["fingerprint"]:
        raise CheckpointError(f"{path / WEIGHTS} was altered: its tensors are not those that were saved.")
    return model.train(bool(manifest["training"]))


def layers(folder: str | Path) -> Iterator[tuple[str, nn.Module]]:
    """The compressed layers of a folder by name, one in memory at a time. Raises CheckpointError."""
    path = Path(folder)
    manifest = _manifest(path)
    parts = streaming.parts(path / WEIGHTS)
    for name, spec in manifest["layers"].items():
        try:
            layer = kinds.blank(spec)
            found = {own: parts[manifest["shared"].get(f"{name}.{own}", f"{name}.{own}")].get() for own in named(layer)}
            _fill(layer, found, {}, path)
        except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise CheckpointError(f"{path} does not describe {name} ({type(error).__name__}: {error}).") from error
        yield name, layer


def removed(folder: str | Path) -> Removed | None:
    """What was cut out of the model of a folder. Raises CheckpointError."""
    found = _manifest(Path(folder)).get("removed")
    try:
        return None if found is None else Removed.parse(found)
    except TransformError as error:
        raise CheckpointError(f"{folder} does not describe what was cut out: {error}") from error


def nbytes(folder: str | Path) -> int:
    """Bytes of the weights as they lie on disk."""
    return (Path(folder) / WEIGHTS).stat().st_size


def _fill(model: nn.Module, tensors: dict[str, Tensor], shared: dict[str, str], path: Path) -> None:
    """Give every parameter and buffer its tensor."""
    expected = {name: tensor for name, (tensor, _) in named(model).items() if name not in shared}
    checkpoint.compare(path / WEIGHTS, tensors, expected)
    for name, found in tensors.items():
        if found.dtype != expected[name].dtype and not expected[name].is_floating_point():
            raise CheckpointError(f"{path / WEIGHTS}: {name} holds {found.dtype} instead of {expected[name].dtype}.")
    made: dict[str, Tensor] = {
        name: nn.Parameter(tensor, requires_grad=tensor.is_floating_point())
        if isinstance(expected[name], nn.Parameter)
        else tensor
        for name, tensor in tensors.items()
    }
    for prefix, module in model.named_modules(remove_duplicate=False):
        for kind in (module._parameters, module._buffers):
            for own, old in kind.items():
                name = f"{prefix}.{own}".removeprefix(".")
                if old is not None:
                    kind[own] = made[shared.get(name, name)]
    for prefix, module in model.named_modules():
        for own, value in vars(module).items():
            if isinstance(value, Tensor) and value.is_meta:
                vars(module)[own] = _twin(module, own, prefix)


def _twin(module: nn.Module, name: str, path: str) -> Tensor:
    """A plain attribute that repeats a buffer (`original_inv_freq` of rotary embeddings) gets that buffer's values."""
    source = module._buffers.get(name.removeprefix("original_"))
    if source is None:
        raise TransformError(f"{path}.{name} is a tensor that is neither parameter nor buffer: it cannot be loaded.")
    return source


def _shared(model: nn.Module) -> dict[str, str]:
    """Further names of tensors -> their first one."""
    first = {id(tensor): name for name, (tensor, _) in named(model).items()}
    pairs = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: first[id(tensor)] for name, tensor in pairs if first[id(tensor)] != name}


def _of_transformers(model: nn.Module) -> bool:
    return any(
        cls.__module__ == "transformers.modeling_utils" and cls.__name__ == "PreTrainedModel" for cls in type(model).__mro__
    )


def _blank(path: Path, manifest: dict[str, Any]) -> nn.Module:
    """The structure of a model of `transformers`, without weights."""
    name = manifest["model"]
    if not isinstance(name, str):
        raise CheckpointError(f"{path} holds no model of transformers: give `build`, which makes its structure.")
    transformers = extras.require("transformers", "models")
    cls = getattr(transformers, name, None)
    if not (isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)):
        raise CheckpointError(f"{path} names the model class {name!r}, which this version of transformers does not have.")
    made: nn.Module = cls(cls.config_class.from_pretrained(path, local_files_only=True))  # type: ignore[attr-defined]
    return made


def _manifest(path: Path) -> dict[str, Any]:
    try:
        found = json.loads((path / MANIFEST).read_text("utf-8"))
        if found["format"] != FORMAT:
            raise ValueError(f"it is not of the format {FORMAT}")
        for key, kind in (("layers", dict), ("shared", dict), ("steps", list), ("fingerprint", str)):
            if not isinstance(found[key], kind):
                raise ValueError(f"'{key}' expects {kind.__name__}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path / MANIFEST} describes no compressed model: {error}.") from error
    return found


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))
