"""trackio: local runs that `trackio show` draws."""

from __future__ import annotations

import contextlib
import io
from typing import Any

from instar import extras
from instar.errors import OutputError
from instar.sinks.sink import Run, Sink


class TrackioSink(Sink):
    """Writes to the project of that name: the curve by step, then the figures. A run whose name is there is not written again.

    Args:
        where: the project. Where it lies is trackio's own setting (TRACKIO_DIR). Raises OutputError for a name that trackio does
            not take, MissingExtraError.
    """

    def __init__(self, where: str) -> None:
        self.project = where
        self._trackio: Any = extras.require("trackio", "trackio")
        try:
            self._there = {run.name for run in self._trackio.Api().runs(where)}
        except ValueError:  # there is no such project yet
            self._there = set()
        except Exception as error:
            raise OutputError(f"trackio cannot open the project '{where}' ({type(error).__name__}: {error}).") from error

    def put(self, run: Run) -> None:
        name = f"{run.name} {run.id}"
        if name in self._there:
            return
        config = {**run.settings, "problem": run.group, "instar.id": run.id, "status": run.reason}
        with contextlib.redirect_stdout(io.StringIO()):  # a library prints nothing, and `--json` has standard output for itself
            self._trackio.init(self.project, name=name, group=run.group or None, config=config, embed=False,
                               auto_log_gpu=False, auto_log_cpu=False)  # fmt: skip
            for step, loss in run.curve:
                self._trackio.log({"train/loss": loss}, step=step)
            self._trackio.log({**run.figures, "ok": float(run.ok)}, step=run.curve[-1][0] if run.curve else 0)
            self._trackio.finish()
        self._there.add(name)
