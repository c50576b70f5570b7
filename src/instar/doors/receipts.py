"""The door to a stored model before or after one of its recorded updates: `before:MODEL/receipts/003-…`, `after:…`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch

from instar.data import pretrained
from instar.doors import decoder, hf
from instar.doors.local import Settings, Subject
from instar.doors.settings import meanings
from instar.errors import ReceiptError
from instar.growth import saved
from instar.receipt import history, load

SIDES = ("before:", "after:")


class RecordedModel(hf.TransformersModel):
    """The model of a folder (of `transformers`, or one of our decoders) as it was before or after one of its updates.

    It is loaded in a fresh process as it stands, in the type in which it is stored, and the updates since are undone there, last
    first; only then do the settings apply. The folder is not touched. `layers` is no setting: a part of a model has no receipts.
    """

    SETTINGS: ClassVar[Mapping[str, str]] = meanings(Settings, without=("layers",))

    def find(self) -> str:
        """The side and the receipt. Raises ReceiptError when it is none of the model's."""
        _, folder, _ = _parts(self.source)
        if not decoder.recognised(folder):
            pretrained.folder(folder)
        return self.source

    @staticmethod
    def open(folder: str, settings: Settings) -> tuple[Subject, dict[str, Any]]:
        """In the fresh process: load, undo the updates down to the one that is asked for, and say what it is."""
        side, model_folder, place = _parts(folder)
        undone = reversed(history(model_folder)[place if side == "before:" else place + 1 :])
        if decoder.recognised(model_folder):
            ours = saved.load_any(model_folder)
            for line in undone:
                load(line.path).undo(ours)
            return decoder.prepared(ours, model_folder, settings)
        model, tokenizer = pretrained.load(model_folder, dtype="auto")
        for line in undone:
            load(line.path).undo(model)
        for parameter in model.parameters():  # no buffers: transformers keeps those of rotary positions in float32
            parameter.data = parameter.data.to(getattr(torch, settings.dtype))
        return hf.prepared(model.to(settings.device), tokenizer, model_folder, settings)


def _parts(source: str) -> tuple[str, Path, int]:
    """The side, the folder of the model, and the place of the receipt in its history."""
    side = next((s for s in SIDES if source.startswith(s)), None)
    receipt = Path(source.removeprefix(side or "")).expanduser()
    if side is None or receipt.parent.name != "receipts":
        raise ReceiptError(f"'{source}' must read before:MODEL/receipts/NNN-id or after:MODEL/receipts/NNN-id.")
    folder = receipt.parent.parent
    for place, line in enumerate(history(folder)):
        if line.path.resolve() == receipt.resolve():
            return side, folder, place
    raise ReceiptError(f"{receipt} is none of the receipts of {folder}; `instar history {folder}` lists them.")
