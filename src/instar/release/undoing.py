"""Taking back the last update of a model folder, tensor by tensor, without loading the model."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from instar import files
from instar.data import pretrained
from instar.errors import OutputError, ReceiptError
from instar.models import streaming
from instar.models.streaming import Part
from instar.receipts import fingerprint as prints
from instar.receipts.facts import Facts
from instar.receipts.receipt import Receipt, load
from instar.receipts.store import Recorded, history
from instar.release import exchange
from instar.release.writing import ADAPTER, CONFIG, GATE, SMALL, vacant


def undo(folder: str | Path, *, out: str | Path | None = None) -> Facts:
    """Restore the version before the last recorded update of a model folder, to the bit, and say what was taken back.

    Args:
        out: where to write the version before; by default it takes the place of `folder`, at once and whole: a kill at any
            moment leaves one of the two.

    Reads and writes the weights once; memory is that of one tensor. Raises ReceiptError where there is nothing to take back, the
    weights were changed since, or the receipt is damaged; CheckpointError, OutputError.
    """
    folder = Path(folder).resolve()  # "." has no name of its own; of a link the model changes, and the link stays
    last = _last(folder)
    said = last.facts
    assert said is not None  # _last refuses damaged ones
    target = folder if out is None else Path(out)
    if out is not None:
        vacant(target)
    files.folder(target.absolute().parent)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.absolute().parent))
    try:
        gone, weights = {last.path.name}, {path.name for path in pretrained.weights(folder)} | {prints.INDEX}
        top = str(folder)  # folders below may hold weights of those names too, of modules behind the transformer
        shutil.copytree(folder, temporary, ignore=lambda at, _: gone | weights if str(at) == top else gone, dirs_exist_ok=True)
        for name in (GATE, ADAPTER, SMALL):  # of the version that goes
            shutil.rmtree(temporary / name, ignore_errors=True)
        if (last.path / CONFIG).is_file():
            shutil.copyfile(last.path / CONFIG, temporary / CONFIG)
        streaming.write(temporary / prints.WEIGHTS, _before(folder, last.path, said))
        if prints.fingerprint(temporary) != said.base:
            raise ReceiptError(f"What receipt {said.id} brings back is not the version before. {folder} is as it was.")
        temporary.chmod(0o755)
        if out is None:
            exchange.exchange(temporary, folder)
        else:
            temporary.replace(target)
    except OSError as error:
        raise OutputError(f"Cannot write {target}: {error.strerror}. {folder} is as it was.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return said


def _last(folder: Path) -> Recorded:
    """The last receipt, of weights that stand as it left them."""
    lines = history(folder)
    if not lines:
        raise ReceiptError(f"No update of {folder} is recorded, so there is nothing to take back.")
    last = lines[-1]
    if last.facts is None:
        raise ReceiptError(f"The last receipt of {folder} cannot be read: {last.problem}.")
    receipt: Receipt = load(last.path)  # every tensor is held to its hash
    if (found := prints.fingerprint(folder)) != receipt.facts.after:
        raise ReceiptError(
            f"The weights of {folder} ({found[:12]}) are not those that its last update left ({receipt.facts.after[:12]}). They "
            "were changed since without a receipt; nothing was written."
        )
    return last


def _before(folder: Path, receipt: Path, said: Facts) -> dict[str, Part]:
    """Every tensor of the version before: from the receipt where it changed, else from the folder."""
    back = {new: old for old, new in said.moved.items()}
    gone = {change.name for change in said.changes}
    parts: dict[str, Part] = {}
    for path in pretrained.weights(folder):
        for name, part in streaming.parts(path).items():
            if name in back or name not in gone:
                parts[back.get(name, name)] = part
    kept = streaming.parts(receipt / "before.safetensors")
    for change in said.changes:
        if change.before is None:
            parts.pop(change.name, None)
        elif change.before.persistent:
            stored, entry = kept[change.name], change.before
            shaped = _shaped(stored.get, entry.torch_dtype, entry.shape)  # a type that files do not know lies there as bytes
            parts[change.name] = Part(entry.torch_dtype, entry.shape, shaped)
    return parts


def _shaped(get: Callable[[], Tensor], dtype: torch.dtype, shape: tuple[int, ...]) -> Callable[[], Tensor]:
    def shaped() -> Tensor:
        found = get()
        return found if found.dtype == dtype else found.view(dtype).reshape(shape)

    return shaped
