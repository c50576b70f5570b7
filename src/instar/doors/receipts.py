"""The door to a stored model before or after one of its recorded updates: `before:MODEL/receipts/003-…`, `after:…`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from instar.data import pretrained
from instar.doors import hf, process
from instar.doors.answers import Subject
from instar.doors.settings import Settings
from instar.doors.version import Progress
from instar.errors import ReceiptError
from instar.gate.predictions import Cases, Predictions

SIDES = ("before:", "after:")


class RecordedModel(hf.TransformersModel):
    """The model of a folder as it was before (or after) the update of one of its receipts.

    The model is loaded in a fresh process and the updates since are undone there, last first; the folder is not touched.
    """

    def run(self, cases: Cases, task: str, progress: Progress | None = None) -> Predictions:
        """See `TransformersModel.run`. Also raises ReceiptError."""
        hf.check(task)
        _, folder, _ = _parts(self.source)
        settings = Settings.of(self.settings)
        pretrained.folder(folder)
        request = process.Request(self.name, self.source, self.source, opened, settings, cases, task, hf.LIBRARY)
        return process.run(request, progress)


def opened(source: str, settings: Settings) -> tuple[Subject, dict[str, Any]]:
    """In the fresh process: load the model as it stands, and undo the updates down to the one that is asked for."""
    from instar.receipt import history, load

    side, folder, receipt = _parts(source)
    recorded = history(folder)
    place = next((i for i, line in enumerate(recorded) if line.path.resolve() == receipt.resolve()), None)
    if place is None:
        raise ReceiptError(f"{receipt} is none of the receipts of {folder}; `instar history {folder}` lists them.")

    def revert(model: Any) -> None:
        for line in reversed(recorded[place if side == "before:" else place + 1 :]):
            load(line.path).undo(model)

    return hf.opened(str(folder), settings, revert)


def _parts(source: str) -> tuple[str, Path, Path]:
    side = next((s for s in SIDES if source.startswith(s)), None)
    receipt = Path(source.removeprefix(side or ""))
    if side is None or receipt.parent.name != "receipts":
        raise ReceiptError(f"'{source}' must read before:MODEL/receipts/NNN-id or after:MODEL/receipts/NNN-id.")
    return side, receipt.parent.parent, receipt
