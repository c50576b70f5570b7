"""The folder of a new version: weights, tokenizer, and the receipts of what was done."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from instar import extras, files
from instar.data import pretrained
from instar.errors import CheckpointError, OutputError
from instar.receipts.fingerprint import fingerprint
from instar.receipts.receipt import Receipt
from instar.receipts.store import RECEIPTS, history

_WEIGHTS = {".safetensors", ".bin"}
_KEPT = {".json", ".jinja", ".md", ".merges", ".model", ".tiktoken", ".txt", ".vocab"}
"""What belongs to a model beside its weights; other formats of the weights would be of the version before."""
_WHOLE = 1 << 30
"""Bytes up to which the weights are one file; larger ones are cut, since a file is put together in memory."""
_SHARES = 20
CONFIG = "config.json"
GATE, ADAPTER, SMALL = "gate", "adapter", "small"
OWN = (GATE, ADAPTER, SMALL, RECEIPTS)
"""What lies in the folder of a version and is of this version alone."""


@contextlib.contextmanager
def version(out: str | Path, source: str | Path) -> Iterator[Path]:
    """A folder to be filled, which becomes `out` when the block ends, whole or not at all; `source` stays as it is.

    Args:
        out: a folder that does not exist yet, or is empty. source: of the version before; its history, tokenizer and other files
            are there already, its weights and what was said of it (`OWN`) are not.

    Raises OutputError.
    """
    source, out = Path(source), Path(out)
    vacant(out)
    files.folder(out.parent)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        accompany(source, temporary)
        for line in history(source):
            shutil.copytree(line.path, temporary / RECEIPTS / line.path.name, dirs_exist_ok=True)
        yield temporary
        temporary.chmod(0o755)
        temporary.replace(out)
    except OSError as error:
        raise OutputError(f"Cannot write {out}: {error.strerror}. Nothing is left of it; {source} is as it was.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write(model: Any, out: str | Path, *, source: str | Path, receipts: Sequence[Receipt]) -> Path:
    """Write a model of `transformers` to a new folder, whole or not at all, with the history of `source` and the receipts.

    See `version` and `fill`, and what they raise.
    """
    with version(out, source) as folder:
        fill(model, folder, source=source, receipts=receipts)
    return Path(out)


def fill(model: Any, folder: Path, *, source: str | Path, receipts: Sequence[Receipt]) -> None:
    """Write a model, as the last of the receipts left it, and the receipts into the folder of a new `version`.

    Memory beyond the model: a twentieth of it, and the changed tensors twice. Raises CheckpointError where what was written is
    not what the last receipt says; ReceiptError for receipts of an update that no longer stands.
    """
    weights(model, folder)
    for receipt in receipts:
        recorded = receipt.record(folder)
        shutil.copyfile(Path(source) / CONFIG, recorded / CONFIG)  # the way back needs it: shapes, names of classes
    _same(folder, receipts)


def vacant(out: Path) -> None:
    """Raise OutputError unless a folder may be written here, before any work is done."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out} exists already. A version is written to a new folder: name another one, or move it away.")
    files.folder(out.absolute().parent)


def accompany(source: Path, folder: Path) -> None:
    """Take over everything of a version but its own weights, history and what was said of it; nothing that is there already."""
    for path in sorted(source.rglob("*")):
        inner = path.relative_to(source)
        foreign = inner.parts[0] in OWN or any(part.startswith(".") for part in inner.parts)
        own = path.suffix in _KEPT or (len(inner.parts) > 1 and path.suffix in _WEIGHTS)  # of modules behind the transformer
        if path.is_file() and own and not foreign and not path.name.endswith(".index.json"):
            (folder / inner).parent.mkdir(parents=True, exist_ok=True)
            if not (folder / inner).exists():
                shutil.copyfile(path, folder / inner)


def weights(model: Any, folder: Path) -> None:
    """Write the weights and the configuration. Memory: a twentieth of the model. Raises CheckpointError."""
    nbytes = sum(p.numel() * p.element_size() for p in model.parameters())
    shard = nbytes + 1 if nbytes <= _WHOLE else nbytes // _SHARES
    with pretrained.quiet(extras.require("transformers", "models")):
        try:
            model.save_pretrained(folder, max_shard_size=shard)
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            raise CheckpointError(f"transformers cannot save this {type(model).__name__}: {error}") from error


def _same(folder: Path, receipts: Sequence[Receipt]) -> None:
    """What is on disk is what the last update left."""
    if receipts and (found := fingerprint(folder)) != receipts[-1].facts.after:
        raise CheckpointError(
            f"The weights that were written ({found[:12]}) are not those that the update left ({receipts[-1].facts.after[:12]}): "
            "the model was changed since, or transformers saves it under other names. Nothing was kept."
        )
