"""The plain update: the task's adapter is trained on the new base, and that is all."""

from __future__ import annotations

from pathlib import Path

from instar.compat.distilling import checked
from instar.compat.teacher import logits
from instar.interfaces import Answering, Monitor, Updater, Versions


class PlainUpdate(Updater):
    """The new version answers as its own task adapter says. What every other strategy starts from, and is compared with."""

    def update(
        self,
        versions: Versions,
        *,
        steps: int,
        seed: int = 0,
        monitor: Monitor | None = None,
        folder: Path | None = None,
    ) -> Answering:
        """Nothing is learnt."""
        checked(versions)
        return Answering(lambda ids, mask: logits(versions.new, ids, mask))
