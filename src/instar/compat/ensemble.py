"""Ensembles: how many negative flips are noise of training, and how few there are when the old version still answers too."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import torch
from torch import Tensor

from instar.adapters.attached import switch
from instar.bench.seeds import derive
from instar.compat.distilling import batch, beside, checked, nats, settings, train
from instar.compat.teacher import logits
from instar.errors import ShapeError
from instar.interfaces import Answering, Monitor, Updater, Versions


class Ensemble(Updater):
    """Mean of the predicted probabilities of several adapters of the new version, and of the old version where it is asked.

    Args:
        members: adapters of the new version: the task's own, and `members` − 1 that are trained as it was, by cross-entropy from
            fresh numbers in another order, `steps` steps each. old: whether the old version answers beside them.
        lr, batch: as `Muscle`.

    One forward pass a member, and one of the old version: what a single adapter is measured against, not what is shipped.
    Raises ShapeError.
    """

    def __init__(self, *, members: int = 3, old: bool = False, lr: float | None = None, batch: int = 16) -> None:
        settings(lr, batch)
        if members < 1 or members + old < 2:
            raise ShapeError(f"An ensemble expects two members or more, or old=True; received members={members} and old={old}.")
        self.members, self.old, self.lr, self.batch = members, old, lr, batch

    def update(
        self,
        versions: Versions,
        *,
        steps: int,
        seed: int = 0,
        monitor: Monitor | None = None,
        folder: Path | None = None,
    ) -> Answering:
        """Train the other members, one after the other; the task's own adapter is active at the end.

        A monitor that stops training ends it with the members that there are by then.
        """
        task, model = checked(versions), versions.new
        names = [task]
        stopped = False

        def told(step: int, loss: float) -> bool:
            nonlocal stopped
            stopped = monitor is not None and bool(monitor((len(names) - 2) * steps + step, loss))
            return stopped

        while len(names) < self.members and not stopped:
            name = f"member_{len(names)}"
            own = derive(seed, name)
            names.append(name)
            beside(model, task, name, own, fresh=True)
            portion = functools.partial(batch, versions, size=self.batch, seed=own)
            kept = None if folder is None else folder / name
            train(model, portion, nats, steps=steps, seed=own, lr=self.lr, monitor=told, folder=kept)
        switch(model, task)

        def answer(ids: Tensor, mask: Tensor) -> Tensor:
            found = [logits(versions.old, ids, mask)] if self.old else []
            for name in names:
                switch(model, name)
                found.append(logits(model, ids, mask))
            switch(model, task)
            said = torch.stack([one.float().log_softmax(-1) for one in found])
            return said.logsumexp(0) - math.log(len(found))

        return Answering(answer, len(names) + self.old)
