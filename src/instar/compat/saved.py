"""Heads in a folder: `head.json` and the safetensors file that it names, both treated as hostile when read.

The weights are written first, under the name of their own hash, and `head.json` is replaced at once: a reader, and whoever looks
after a crash, sees the head that stood there before or the new one. A head is rebuilt from the catalogue's class and its knobs
(every argument of a constructor is an attribute of the same name), so that a file can name nothing else to run.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load as tensors_of
from safetensors.torch import save as as_bytes

from instar import catalogue, files
from instar.compat import chain, head_file
from instar.compat.head_file import DTYPES, FORMAT, HEAD
from instar.errors import CheckpointError, GenerationError, InstarError, ShapeError, UnknownNameError
from instar.interfaces import CompatibleHead, Generation
from instar.models import checkpoint
from instar.retrieval.fusion import Calibration


@dataclass(frozen=True)
class Saved:
    """A head with what it may be used for."""

    head: CompatibleHead
    generations: list[Generation]
    """Those that it can query, the oldest first; the last one is its own."""
    calibration: Calibration | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def require(self, fingerprint: str, generation: int) -> None:
        """Raise GenerationError unless the vectors of `generation` are of the encoder with this fingerprint."""
        if not 0 <= generation < len(self.generations):
            raise GenerationError(f"This head knows generations 0 to {len(self.generations) - 1}; received {generation}.")
        known = self.generations[generation]
        if known.encoder != fingerprint:
            raise GenerationError(
                f"Generation {generation} of this head is of the encoder {_called(known)}; received one of {fingerprint[:12]}. "
                "Vectors of two encoders cannot be compared: take the encoder that the head was fitted on, or fit another head."
            )


def save(
    head: CompatibleHead,
    folder: Path,
    *,
    generations: Sequence[Generation],
    facts: Mapping[str, Any] | None = None,
    calibration: Calibration | None = None,
) -> None:
    """Write a head to `folder`, whole or not at all.

    generations: of every generation that the head can query, the oldest first, its own last; their widths are the head's.
    Raises ShapeError for knobs or facts that JSON cannot hold, GenerationError for generations that are not the head's,
    UnknownNameError for a class that is no method of the catalogue, OutputError.
    """
    links = chain.of(head)
    if reason := _unfit(links, generations):
        raise GenerationError(f"These generations are not those of the head: {reason}.")
    tensors = {
        f"{place}.{name}": value.detach().cpu().contiguous()
        for place, one in enumerate(links)
        for name, value in chain.own(one).items()
    }
    dtypes = {str(value.dtype).removeprefix("torch.") for value in tensors.values() if value.is_floating_point()} or {"float32"}
    if len(dtypes) > 1 or not dtypes <= DTYPES.keys():
        raise ShapeError(f"A head is saved in {' or '.join(DTYPES)}; received {', '.join(sorted(dtypes))}.")
    content = as_bytes({name: value.clone() for name, value in tensors.items()})
    weights = f"{hashlib.sha256(content).hexdigest()}.safetensors"
    table = {
        "format": FORMAT,
        "heads": [_described(one) for one in links],
        "weights": weights,
        "dtype": dtypes.pop(),
        "generations": [asdict(one) for one in generations],
        "calibration": None if calibration is None else calibration.as_json(),
        "facts": dict(facts or {}),
    }
    try:
        text = json.dumps(table, indent=1, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ShapeError(f"Knobs and facts of a head are JSON; received what is not: {error}") from error
    files.folder(folder)
    before = head_file.weights(folder)
    files.write(folder / weights, content)
    files.write(folder / HEAD, text)
    if before not in (None, weights):
        with contextlib.suppress(OSError):
            (folder / str(before)).unlink()


def load(folder: Path) -> Saved:
    """The head of a folder, in eval mode on the CPU. Raises CheckpointError, UnknownNameError for a method that is not known."""
    table, content = head_file.read(folder)
    path = folder / table["weights"]
    try:
        tensors = tensors_of(content)
    except (safetensors.SafetensorError, RuntimeError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path} is no safetensors file ({error}). Nothing was loaded.") from error
    links = [_built(folder / HEAD, described) for described in table["heads"]]
    expected = {f"{place}.{name}": value for place, one in enumerate(links) for name, value in chain.own(one).items()}
    checkpoint.compare(path, tensors, expected)
    dtype = DTYPES[table["dtype"]]
    for name, value in tensors.items():
        if value.is_floating_point() and (value.dtype != dtype or not bool(torch.isfinite(value).all())):
            raise CheckpointError(f"{path}: {name} is {value.dtype} or not finite; expected finite {dtype}. Nothing was loaded.")
    for place, one in enumerate(links):
        one.load_state_dict({name: tensors[f"{place}.{name}"] for name in chain.own(one)}, assign=True)
        if lost := [name for name, value in [*one.named_parameters(), *one.named_buffers()] if value.is_meta]:
            raise CheckpointError(f"{type(one).__name__} does not save {', '.join(lost)}; make them persistent buffers.")
    for older, newer in itertools.pairwise(links):
        newer.previous = older
    return _checked(folder / HEAD, table, links)


def _checked(path: Path, table: dict[str, Any], links: list[CompatibleHead]) -> Saved:
    try:
        generations = [Generation(**one) for one in table["generations"]]
        calibration = None if table["calibration"] is None else Calibration.of_json(table["calibration"])
    except (TypeError, InstarError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    if reason := _unfit(links, generations):
        raise CheckpointError(f"{path}: the generations are not those of the head: {reason}.")
    return Saved(links[-1].eval(), generations, calibration, table["facts"])


def _described(head: CompatibleHead) -> dict[str, Any]:
    """What rebuilds an empty head: the address of its method and its arguments."""
    card = catalogue.of(type(head))
    if card is None or catalogue.load(card) is not type(head):
        raise UnknownNameError(f"{type(head).__name__} is no method of the catalogue, so nobody could load it. Give it a card.")
    names = [name for name in inspect.signature(type(head)).parameters if name not in ("new_dim", "old_dim")]
    return {"method": card.slug, "new_dim": head.new_dim, "old_dim": head.old_dim, "knobs": {n: getattr(head, n) for n in names}}


def _built(path: Path, described: Any) -> CompatibleHead:
    """An empty head on the meta device, where a size that a file makes up costs nothing."""
    try:
        method, new_dim, old_dim, knobs = (described[key] for key in ("method", "new_dim", "old_dim", "knobs"))
        if not isinstance(method, str) or not isinstance(knobs, dict) or not all(type(d) is int for d in (new_dim, old_dim)):
            raise TypeError("a head expects a method, whole widths and a table of knobs")
    except (TypeError, KeyError) as error:
        raise CheckpointError(f"{path} describes no head: {error!r}.") from error
    cls: Any = catalogue.load(catalogue.method(method))
    if not issubclass(cls, CompatibleHead):
        raise CheckpointError(f"{path} names {method}, which is no compatible head.")
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            built: CompatibleHead = cls(new_dim, old_dim, **{k: tuple(v) if isinstance(v, list) else v for k, v in knobs.items()})
            return built
    except (InstarError, TypeError, ValueError, RuntimeError, OverflowError, MemoryError) as error:
        raise CheckpointError(f"{path} describes no {method}: {error}") from error


def _unfit(links: Sequence[CompatibleHead], generations: Sequence[Generation]) -> str:
    """Why generations are not those of a chain of heads, the oldest first; empty when they are."""
    widths = [links[0].old_dim, *(one.full_dim for one in links)]
    if [one.full_dim for one in links[:-1]] != [one.old_dim for one in links[1:]]:
        return "a head does not begin at the width where the one before it ends"
    for number, (width, one) in enumerate(zip(widths, generations, strict=False)):
        kinds = (type(one.number), type(one.dim), type(one.encoder), type(one.name))
        if kinds != (int, int, str, str) or not one.encoder:
            return f"generation {number} lacks its number, width, encoder or name"
        if (one.number, one.dim) != (number, width):
            return f"expected generation {number} of width {width}, found {one.number} of width {one.dim}"
    if len(generations) != len(widths):
        return f"expected {len(widths)} of them, found {len(generations)}"
    return ""


def _called(generation: Generation) -> str:
    return f"{generation.name} ({generation.encoder[:12]})" if generation.name else generation.encoder[:12]
