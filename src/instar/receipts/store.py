"""Receipts on disk: `receipt.json`, `before.safetensors`, `after.safetensors`, in a folder of their own.

Two whole sides rather than one exclusive-or: tensors may change shape or come and go, either side can be looked at with any
tool, and a copy of the side that is needed is all that is read. A model folder keeps its receipts in `receipts/NNN-ID/`.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from instar import files
from instar.errors import InstarError, OutputError, ReceiptError
from instar.models import checkpoint, streaming
from instar.models.streaming import Part
from instar.receipts import bits, facts
from instar.receipts.facts import Facts, some
from instar.receipts.snapshot import Side

FACTS, RECEIPTS = "receipt.json", "receipts"
_ENTRY = re.compile(r"(\d{3,9})-([0-9a-f]{12})")


@dataclass(frozen=True)
class Recorded:
    """One line of a model's history."""

    number: int
    path: Path
    facts: Facts | None
    """None where the receipt is damaged."""
    problem: str = ""
    """Why the chain is broken here; empty where this receipt begins at what the one before it left."""


def save(said: Facts, before: Mapping[str, Tensor | Part], after: Mapping[str, Tensor | Part], folder: Path) -> Path:
    """Write a receipt to a folder that does not exist yet (or is empty), whole or not at all. Raises OutputError."""
    files.folder(folder.parent)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        for name, tensors in (("before", before), ("after", after)):
            parts = {key: one if isinstance(one, Part) else Part.held(one) for key, one in tensors.items()}
            streaming.write(temporary / f"{name}.safetensors", parts)
        files.write_json(temporary / FACTS, said.json())
        temporary.chmod(0o755)
        temporary.replace(folder)
    except OSError as error:
        raise OutputError(
            f"Cannot write the receipt {folder}: {error.strerror}. It needs a folder that does not exist yet."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def values(folder: Path, said: Facts, side: Side) -> dict[str, bits.Copy]:
    """The bits of one side, each held to its hash. Raises CheckpointError, ReceiptError."""
    path = folder / f"{side}.safetensors"
    tensors, _ = checkpoint.read(path)
    wanted = said.lines(side)
    if tensors.keys() != wanted.keys():
        raise ReceiptError(
            f"{path} holds other tensors than {FACTS} says: {some(tensors.keys() ^ wanted.keys())}. Nothing was loaded."
        )
    hashes = bits.digests([[tensor] for tensor in tensors.values()])
    sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()}
    wrong = [n for n, sha256 in zip(tensors, hashes, strict=True) if sha256 != wanted[n].sha256 or sizes[n] != wanted[n].nbytes]
    if wrong:
        raise ReceiptError(f"{path} was altered: {some(wrong)} differ from {FACTS}. Nothing was loaded.")
    whole = {name: bits.value((tensor,), wanted[name].torch_dtype, wanted[name].shape) for name, tensor in tensors.items()}
    return {name: (bits.bits(tensor),) for name, tensor in whole.items()}


def record(said: Facts, before: Mapping[str, Tensor | Part], after: Mapping[str, Tensor | Part], model: Path) -> Path:
    """Append a receipt to the history of a model folder. Raises OutputError."""
    folder = files.folder(model / RECEIPTS)
    number = max((n for n, _ in _recorded(folder)), default=0) + 1
    return save(said, before, after, folder / f"{number:03d}-{said.id}")


def history(model: str | Path) -> list[Recorded]:
    """The receipts of a model folder, oldest first. Reads their JSON only: `load` holds the tensors to it.

    Raises ReceiptError when there is no such folder; a damaged receipt is a line with a problem.
    """
    folder = Path(model)
    if not folder.is_dir():
        raise ReceiptError(f"There is no model folder {folder}.")
    lines: list[Recorded] = []
    last = ""
    for number, path in _recorded(folder / RECEIPTS):
        try:
            said = facts.read(path / FACTS)
        except InstarError as error:
            lines.append(Recorded(number, path, None, f"damaged: {error}"))
            last = "?"
            continue
        problem = ""
        if not path.name.endswith(said.id):
            problem = f"the folder holds receipt {said.id}"
        elif last and said.base != last:
            problem = "begins at other weights than the receipt before left: a change without a receipt lies between"
        lines.append(Recorded(number, path, said, problem))
        last = said.after
    return lines


def _recorded(folder: Path) -> list[tuple[int, Path]]:
    """The folders of receipts, in order; whatever else lies there is not looked at."""
    found = [(match, path) for path in (folder.iterdir() if folder.is_dir() else ()) if (match := _ENTRY.fullmatch(path.name))]
    return sorted((int(match[1]), path) for match, path in found if path.is_dir() and not path.is_symlink())
