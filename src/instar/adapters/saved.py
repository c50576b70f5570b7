"""Adapters in folders, in the layout of `peft`, and beside it `instar.json`, which says what `peft` does not: of which weights.

All three files are untrusted when read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as as_bytes
from torch import Tensor, nn

from instar import catalogue, files
from instar.adapters import peft_layout
from instar.adapters import where as places
from instar.adapters.attached import active, bare, own_layers, require, require_unmerged, state_of
from instar.adapters.attaching import arguments, attach_name, in_order, place, slug
from instar.adapters.copying import Copy
from instar.adapters.ia3 import IA3Layer
from instar.adapters.layer import AdapterLayer
from instar.anatomy import linears
from instar.errors import AdapterError, CheckpointError, InstarError, OutputError
from instar.interfaces import Adapter
from instar.models import checkpoint
from instar.receipt import Receipt, updating
from instar.receipts.fingerprint import combine, table

CONFIG, WEIGHTS, FACTS = "adapter_config.json", "adapter_model.safetensors", "instar.json"
FORMAT = "instar-adapter-1"
_LARGEST = 16 << 20


def base_fingerprint(model: nn.Module, replaced: Sequence[str] = ()) -> str:
    """The fingerprint of a model without its adapters, and without modules that an adapter trains whole. One pass."""
    with bare(model):
        lines = table(model)
    return combine({n: line for n, line in lines.items() if not any(n.startswith(f"{path}.") for path in replaced)})


def save(model: nn.Module, folder: str | Path, name: str | None = None) -> Path:
    """Write an adapter to a folder that does not exist yet (or is empty), whole or not at all: its own tensors and no others.

    name: the active one by default. The base is named by its fingerprint (one pass over its bytes). Raises AdapterError,
    OutputError.
    """
    chosen = active(model) if name is None else name
    if chosen is None:
        raise AdapterError(f"No adapter is active: name one of {', '.join(state_of(model).named) or 'none (attach one first)'}.")
    named = require(model, chosen)
    require_unmerged(model, "save")
    method = slug(named.adapter)
    content = as_bytes({key: value.detach().cpu().contiguous().clone() for key, value in _tensors(model, chosen).items()})
    parts = {path: layer.adapters[chosen] for path, layer in own_layers(model, chosen).items()}
    form = peft_layout.FORMS.get(method)
    ends = [path for path, part in parts.items() if isinstance(part, IA3Layer) and part.feedforward]
    given = arguments(named.adapter)
    layers = [path for path in named.layers if path not in named.saved]
    with bare(model):
        transposed = any(part.transposed for part in linears(model) if part.name in layers)
    config = {
        "peft_type": form.peft_type if form else method.upper(),
        "base_model_name_or_path": str(getattr(model, "name_or_path", "") or "") or None,
        "task_type": None,
        "inference_mode": True,
        "target_modules": layers,
        "modules_to_save": list(named.saved) or None,
        **({"fan_in_fan_out": transposed, **form.write(given, ends)} if form else {}),
    }
    facts = {
        "format": FORMAT,
        "method": method,
        "arguments": given,
        "layers": layers,
        "modules_to_save": list(named.saved),
        "base": base_fingerprint(model, named.layers if named.adapter.replaces else named.saved),
        "weights": hashlib.sha256(content).hexdigest(),
    }
    return _write(Path(folder), {CONFIG: config, FACTS: facts}, content)


def load(model: nn.Module, folder: str | Path, *, name: str = "default", unverified: bool = False) -> Receipt:
    """Attach the adapter of a folder, active, under a name; all or nothing.

    unverified: take an adapter that does not say of which weights it is, such as one that `peft` wrote. One that does say is
    refused by any other base, since on that it would be noise. Raises AdapterError, CheckpointError, UnknownNameError.
    """
    path = Path(folder)
    method, given, patterns, saved, base, digest = _told(path)
    attach_name(model, name)
    adapter = _built(path, method, given)
    with bare(model):
        if base is None:
            parts = places.chosen(model, patterns, adapter.takes, adapter.noun) if patterns else []
            whole = places.chosen(model, saved, places.trains, "module") if saved else []
        else:
            parts, whole = patterns, saved
            _require_there(model, parts, adapter.takes, path)
            _require_there(model, whole, places.trains, path)
        layers, kept = in_order(model, parts, whole)
    if base is None and not unverified:
        raise AdapterError(
            f"{path} does not say of which weights it is an adapter. If you know that this model is its base, say "
            "unverified=True."
        )
    if base is not None and base_fingerprint(model, layers if adapter.replaces else kept) != base:
        raise AdapterError(
            f"{path} is an adapter of other weights than those of this {type(model).__name__} (another model, version or type "
            "of numbers), on which it would be noise. Load the base it was trained on."
        )
    tensors, sha256 = _read(path / WEIGHTS)
    if digest is not None and digest != sha256:
        raise CheckpointError(f"{path / WEIGHTS} is not the file that {FACTS} speaks of: it was altered. Nothing was loaded.")
    settings = {**given, "name": name, "layers": layers, "modules_to_save": kept, "folder": str(path)}
    with updating(model, method=method, settings=settings, changes=()) as update:
        place(adapter, model, layers, kept, name)
        expected = _tensors(model, name)
        checkpoint.compare(path / WEIGHTS, tensors, expected)
        with torch.no_grad():
            for key, tensor in expected.items():
                if not bool(torch.isfinite(tensors[key]).all()):
                    raise CheckpointError(f"{path / WEIGHTS}: {key} holds values that are not finite. Nothing was loaded.")
                tensor.copy_(tensors[key])
    return update.receipt


def _tensors(model: nn.Module, name: str) -> dict[str, Tensor]:
    """What an adapter owns, by the names that files give it; a tensor that several modules share once."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for path, part in _parts(model, name):
        names = {} if isinstance(part, Copy) else part.file_names
        module = part.module if isinstance(part, Copy) else part
        for key, tensor in module.state_dict(keep_vars=True).items():
            if id(tensor) not in seen:
                seen.add(id(tensor))
                found[f"{peft_layout.PREFIX}{path}.{names.get(key, key)}"] = tensor
    return found


def _parts(model: nn.Module, name: str) -> Iterator[tuple[str, AdapterLayer]]:
    for path, layer in own_layers(model, name).items():
        part = layer.adapters[name]
        assert isinstance(part, AdapterLayer)
        yield path, part


def _require_there(model: nn.Module, names: Sequence[str], takes: Callable[[nn.Module], bool], path: Path) -> None:
    """Exactly these layers, not some that are called alike."""
    there = {name for name, module in model.named_modules() if name and takes(module)}
    if lacking := [name for name in names if name not in there]:
        raise AdapterError(f"{path} adapts {lacking[0]}, which this {type(model).__name__} does not have. Nothing was loaded.")


def _write(folder: Path, tables: Mapping[str, Mapping[str, Any]], content: bytes) -> Path:
    try:
        texts = {name: json.dumps(table, indent=1, allow_nan=False) + "\n" for name, table in tables.items()}
    except (TypeError, ValueError) as error:
        raise AdapterError(f"Arguments of an adapter are kept as JSON, which these are not: {error}.") from error
    files.folder(folder.parent)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        files.write(temporary / WEIGHTS, content)
        for name, text in texts.items():
            files.write(temporary / name, text)
        temporary.chmod(0o755)
        os.replace(temporary, folder)  # noqa: PTH105 - replaces an empty folder, and only that
    except OSError as error:
        raise OutputError(f"Cannot write {folder}: {error.strerror}. It needs a folder that does not exist yet.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _table(path: Path) -> dict[str, Any]:
    try:
        if not path.is_file() or path.stat().st_size > _LARGEST:
            raise ValueError("it is missing, no plain file, or too large")
        found = json.loads(path.read_text("utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it is no table")
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} says nothing of an adapter: {error}. Nothing was loaded.") from error
    return found


def _told(path: Path) -> tuple[str, dict[str, Any], list[str], list[str], str | None, str | None]:
    """Method, arguments, layers, modules trained whole, fingerprint of the base and hash of the weights."""
    if not (path / FACTS).exists():
        return (*peft_layout.read(_table(path / CONFIG), str(path / CONFIG)), None, None)
    own = _table(path / FACTS)
    try:
        layers, saved = own["layers"], own["modules_to_save"]
        if own["format"] != FORMAT or not all(isinstance(value, list) for value in (layers, saved)):
            raise TypeError("another format")
        texts = [own["method"], own["base"], own["weights"], *layers, *saved]
        if not isinstance(own["arguments"], dict) or not all(isinstance(text, str) for text in texts):
            raise TypeError("values of other types")
        return own["method"], own["arguments"], layers, saved, own["base"], own["weights"]
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path / FACTS} describes no adapter: {error!r}. Nothing was loaded.") from error


def _built(path: Path, method: str, given: Mapping[str, Any]) -> Adapter:
    cls: Any = catalogue.load(catalogue.method(method))
    if not issubclass(cls, Adapter):
        raise CheckpointError(f"{path} names {method}, which is no adapter.")
    try:
        made: Adapter = cls(**given)
        return made
    except (InstarError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} describes no {method}: {error}") from error


def _read(path: Path) -> tuple[dict[str, Tensor], str]:
    tensors, _ = checkpoint.read(path)
    with path.open("rb") as stream:
        return tensors, hashlib.file_digest(stream, "sha256").hexdigest()
