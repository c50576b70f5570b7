"""The receipt of a new version from its folder and that of the version before, without loading either."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from instar.data import pretrained
from instar.models import streaming
from instar.models.streaming import Part
from instar.receipts import bits, store
from instar.receipts import facts as saying
from instar.receipts.facts import Change, Facts
from instar.receipts.fingerprint import Table, combine, entry
from instar.release.writing import CONFIG


def record(source: Path, folder: Path, *, method: str, title: str, settings: Mapping[str, Any], seconds: float) -> Facts:
    """Append to the history of `folder` what makes its weights out of those of `source`. Memory is that of one tensor.

    A tensor that only stands under another name is no change (`Facts.moved`).

    Reads both once and the changed tensors twice. Raises CheckpointError, OutputError.
    """
    old, new = _parts(source), _parts(folder)
    before, after = _table(old), _table(new)
    moved = _moved(before, after)
    names = [*before, *(name for name in after if name not in before)]
    same = {*moved, *moved.values()}
    changes = tuple(Change(n, before.get(n), after.get(n)) for n in names if before.get(n) != after.get(n) and n not in same)
    gone = {change.name for change in changes}
    said = Facts(
        method=method,
        title=title,
        settings=saying.settings(dict(settings)),
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=float(seconds),
        source=str(source),
        parent="",
        base=combine(before),
        after=combine(after),
        rest=combine({name: line for name, line in after.items() if name not in gone}),
        changes=changes,
        moved=moved,
    )
    path = store.record(said, {n: old[n] for n in said.lines("before")}, {n: new[n] for n in said.lines("after")}, folder)
    shutil.copyfile(source / CONFIG, path / CONFIG)  # names of classes change where no tensor does
    return said


def _moved(before: Table, after: Table) -> dict[str, str]:
    """Old -> new name of equal tensors whose name got a first part, or lost it: a model under a head is `bert.…` there."""
    lost, new = before.keys() - after.keys(), after.keys() - before.keys()
    shorter = {name.partition(".")[2]: name for name in new}
    found = {name: shorter.get(name) or name.partition(".")[2] for name in lost}
    return {old: now for old, now in sorted(found.items()) if now in new and before[old] == after[now]}


def _parts(folder: Path) -> dict[str, Part]:
    return {name: part for path in pretrained.weights(folder) for name, part in streaming.parts(path).items()}


def _table(parts: Mapping[str, Part]) -> Table:
    return {name: entry(tensor := part.get(), bits.digest([tensor])) for name, part in parts.items()}
